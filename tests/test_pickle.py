"""Pickles of the objects of every public class, before and after use: spawn, joblib, Ray and submitit need them."""

import io
import math
import pickle
import subprocess
import sys
from contextlib import redirect_stderr

import numpy as np
import pytest
import torch
from helpers.exported import exported_classes
from pytorch_metric_learning.losses import ContrastiveLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch.utils.data import TensorDataset

from pml_supcon import corruptions, functional, losses, metrics, miners, models, samplers, targets, testers, views

LABELS = torch.arange(4).repeat(4)
ROWS = torch.nn.functional.one_hot(LABELS, 8) + 0.1 * torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
IMAGES = (LABELS * 60).byte().view(16, 1, 1, 1).expand(16, 1, 8, 8)
STATS = {"mean": [0.5], "std": [0.25]}


def flat(image):
    return image.float().flatten()


def noisy(image):
    return image + torch.rand(1)


def of_rows(thing):
    return thing(ROWS, LABELS)


def of_target(labels):
    return lambda target: losses.SupConLossOut(target=target)(ROWS, labels)


def of_points(thing):
    return thing(ROWS.view(4, 2, 8, 2), torch.eye(2, 3).expand(4, 2, 2, 3))


def of_keys(thing):
    return thing(ROWS, LABELS, keys=ROWS.flip(1))


def of_views(thing):
    return thing(ROWS, ROWS.flip(1))


def of_two_views(thing):
    views = torch.stack([ROWS, ROWS.flip(1)], dim=1)
    return thing(views.flip(0), LABELS, projections=views)


def of_maps(thing):
    return thing(ROWS.view(2, 2, 4, 8), LABELS.repeat(4).view(2, 4, 8))


def of_images(thing):
    torch.manual_seed(0)
    return thing(IMAGES)


def of_mixed(thing):
    torch.manual_seed(0)
    return thing(IMAGES.float(), LABELS)


def of_indices(thing):
    return thing(IMAGES, torch.arange(16))


def first_item(thing):
    torch.manual_seed(0)
    return thing[0]


def first_batch(thing):
    torch.manual_seed(0)
    return thing.__getitems__(samplers.MultiViewBatchSampler(LABELS, 4).__iter__().__next__())


def scores(tester):
    data = TensorDataset(IMAGES if hasattr(tester, "transform") else ROWS, LABELS)
    splits = [("test", ["train"])]
    if isinstance(tester, testers.HardMiningTester | testers.RetrievalTester):
        splits = [("test", ["test"])]
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 3) if isinstance(tester, testers.HeadProbeTester) else None
    with redirect_stderr(io.StringIO()):  # PML's progress bar
        return tester.test({"train": data, "test": data}, 1, torch.nn.Identity(), head, splits)["test"]


def made_tester(kind, *arguments, **options):
    return getattr(testers, kind)(*arguments, dataloader_num_workers=0, data_device="cpu", **options)


def out(**options):
    return losses.SupConLossOut(**options)


NET = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4))
DATA = [(torch.zeros(1, 8, 8), 5)] * 16
CASES = {
    "samplers.MultiViewBatchSampler": (lambda: samplers.MultiViewBatchSampler(LABELS, 4), list),
    "views.ImageTransform": (lambda: views.evaluation_transform(8, **STATS), of_images),
    "views.MultiView": (lambda: views.MultiView(noisy), of_images),
    "views.MultiViewDataset": (lambda: views.MultiViewDataset(DATA, noisy), first_item),
    "views.MultiViewTensorDataset": (lambda: views.MultiViewTensorDataset(IMAGES, LABELS, noisy), first_item),
    "views.SeededDataset": (lambda: views.SeededDataset(views.MultiViewDataset(DATA, noisy)), first_batch),
    "views.BatchMix": (lambda: views.BatchMix("both", num_classes=4), of_mixed),
    "views.Grey": (views.Grey, of_indices),
    "views.Rotation": (lambda: views.Rotation(90), of_indices),
    "views.Sobel": (views.Sobel, of_indices),
    "views.GaussianNoise": (views.GaussianNoise, of_indices),
    "views.ChangedDataset": (
        lambda: views.ChangedDataset(TensorDataset(IMAGES, LABELS), views.Sobel(), transform=flat),
        first_item,
    ),
    "models.ProjectionHead": (lambda: models.ProjectionHead(8, 3), lambda head: head(ROWS)),
    "models.PredictionHead": (lambda: models.PredictionHead(8, hidden_features=16), lambda head: head(ROWS)),
    "models.ChunkedEncoder": (lambda: models.ChunkedEncoder(NET, 5), lambda encoder: encoder(ROWS)),
    "models.MomentumEncoder": (lambda: models.MomentumEncoder(NET), lambda encoder: encoder(ROWS)),
    "targets.LabelSets": (lambda: targets.LabelSets("any"), of_target(ROWS > 0.1)),
    "targets.SoftLabels": (targets.SoftLabels, of_target(ROWS.abs())),
    "targets.Hierarchy": (lambda: targets.Hierarchy([1, 2]), of_target(torch.stack([LABELS // 2, LABELS], dim=1))),
    "targets.Kernel": (lambda: targets.Kernel(0.5), of_target(LABELS)),
    "targets.Target": (targets.Target, lambda target: target.normalization),
    "functional.AnchorLosses": (lambda: functional.supcon_loss(ROWS, LABELS), lambda terms: terms.mean()),
    "miners.OnlineHardExampleMiner": (miners.OnlineHardExampleMiner, of_rows),
    "miners.CappedPositivesMiner": (
        lambda: miners.CappedPositivesMiner(2, generator=torch.Generator().manual_seed(3)),
        of_rows,
    ),
    "miners.MeasuredMiner": (lambda: miners.MeasuredMiner(BatchHardMiner()), of_rows),
    "losses.SupConLossOut": (out, of_rows),
    "losses.SupConLossIn": (losses.SupConLossIn, of_rows),
    "losses.CrossModalLoss": (lambda: losses.CrossModalLoss(out()), of_views),
    "losses.RankNContrastLoss": (losses.RankNContrastLoss, of_rows),
    "losses.RelationDistillation": (losses.RelationDistillation, lambda loss: loss(ROWS, ROWS.flip(0))),
    "losses.ViewConsistencyLoss": (losses.ViewConsistencyLoss, of_points),
    "losses.PixelSupConLoss": (lambda: losses.PixelSupConLoss(out(), num_pixels=5), of_maps),
    "losses.MaskPrototypeLoss": (losses.MaskPrototypeLoss, of_maps),
    "losses.LearnableTemperature": (
        lambda: losses.LearnableTemperature(0.2),
        lambda temperature: out(temperature=temperature)(ROWS, LABELS).detach(),
    ),
    "losses.GlobalBatchLoss": (lambda: losses.GlobalBatchLoss(out(), miner=BatchHardMiner()), of_rows),
    "losses.QueueLoss": (lambda: losses.QueueLoss(out(), 8, 40), of_keys),
    "losses.NearestNeighbourLoss": (lambda: losses.NearestNeighbourLoss(out(), 8, 40), of_two_views),
    "losses.CrossBatchMemory": (lambda: losses.CrossBatchMemory(out(), 8, 40), of_rows),
    "losses.SelfSupervisedLoss": (lambda: losses.SelfSupervisedLoss(out()), of_views),
    "metrics.WorstQueries": (
        lambda: metrics.worst_queries(ROWS, LABELS, ROWS, LABELS, ref_includes_query=True),
        lambda found: found.scores,
    ),
    "metrics.EmbeddingMap": (
        lambda: metrics.embedding_map(ROWS, methods=["pca"], seed=0),
        lambda found: found.coordinates["pca"],
    ),
    "testers.RetrievalTester": (lambda: made_tester("RetrievalTester", clustering=True), scores),
    "testers.LinearProbeTester": (lambda: made_tester("LinearProbeTester"), scores),
    "testers.FewShotTester": (lambda: made_tester("FewShotTester", shots=(1, 2), draws=3), scores),
    "testers.CalibrationTester": (lambda: made_tester("CalibrationTester", held_out=0.5), scores),
    "testers.CorruptionTester": (
        lambda: made_tester("CorruptionTester", flat, corruptions=["brightness"], severities=[1]),
        scores,
    ),
    "testers.HeadProbeTester": (
        lambda: made_tester("HeadProbeTester", tasks={"sobel": (None, views.Sobel())}, transform=flat),
        scores,
    ),
    "testers.HardMiningTester": (lambda: made_tester("HardMiningTester"), scores),
    "corruptions.Corruption": (lambda: corruptions.Corruption("gaussian_noise", 1), of_indices),
}
# Objects inside the exported ones: every augmentation, other distances, the wrappers around other losses.
MORE = {
    f"augmentation {name}": (lambda name=name: views.augmentation(name, 8, **STATS), of_images)
    for name in views.AUGMENTATIONS
} | {
    "RetrievalTester without k-means": (lambda: made_tester("RetrievalTester"), scores),
    "HeadProbeTester without tasks": (lambda: made_tester("HeadProbeTester", transform=flat), scores),
    "loss in CrossBatchMemory": (lambda: losses.CrossBatchMemory(ContrastiveLoss(), 8, 40), of_rows),
    "loss in GlobalBatchLoss": (lambda: losses.GlobalBatchLoss(ContrastiveLoss()), of_rows),
    "queue in GlobalBatchLoss": (lambda: losses.GlobalBatchLoss(losses.QueueLoss(out(), 8, 40)), of_rows),
    "miner of a miner": (lambda: miners.MeasuredMiner(miners.CappedPositivesMiner(1, choose="hardest")), of_rows),
}


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def test_every_public_class_has_a_case():
    assert set(CASES) == set(exported_classes())


@pytest.mark.parametrize("name", [*CASES, *MORE])
def test_a_copy_of_an_object_gives_what_the_object_gives(name):
    build, use = (CASES | MORE)[name]
    thing = build()
    copy = pickle.loads(pickle.dumps(thing))
    first = use(thing)
    assert equal(use(copy), first)
    used = pickle.loads(pickle.dumps(thing))  # with the state of a call: a queue, measurements, a generator
    assert equal(use(used), use(thing))


def test_another_process_reads_the_testers():
    made = [build() for name, (build, _) in CASES.items() if name.startswith("testers.")]
    made = [each for each in made if not hasattr(each, "transform")]  # `flat` is a function of this file
    script = "import pickle, sys; print(*(type(x).__name__ for x in pickle.load(sys.stdin.buffer)))"
    given = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(made), capture_output=True, check=True)
    assert given.stdout.decode().split() == [type(each).__name__ for each in made]
    assert len(made) == 5
