"""The PML tester of a linear probe."""

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, trainers
from pytorch_metric_learning.utils import logging_presets
from sklearn.exceptions import ConvergenceWarning
from torch.utils.data import TensorDataset

from pml_supcon.metrics.linear_probe import linear_probe_metrics
from pml_supcon.testers import LinearProbeTester

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def clustered(rows, *, seed, classes=8, width=6, spread=1.5):
    """Overlapping classes whose features have different scales and means."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    points = centres[labels] + spread * rng.normal(size=(rows, width))
    return points * 10.0 ** np.linspace(-2, 2, width) + np.arange(width) * 50, labels


def split(rows, seed, *, columns=1, spread=0.5):
    points, labels = clustered(rows, seed=seed, spread=spread)
    levels = [labels // 4**level for level in range(columns)]
    return TensorDataset(torch.from_numpy(points).float(), torch.from_numpy(np.stack(levels, axis=1).squeeze()))


def make_tester(**options):
    return LinearProbeTester(dataloader_num_workers=0, data_device=CPU, **options)


def test_tester_fits_on_the_references_and_scores_the_query_from_the_trunk():
    data = {"train": split(100, 1), "more": split(100, 2), "test": split(100, 3)}
    trunk, embedder = torch.nn.Linear(6, 6), torch.nn.Linear(6, 1)
    found = make_tester().test(data, 3, trunk, embedder, [("test", ["train", "more"])])
    with torch.no_grad():
        rows = {name: trunk(dataset.tensors[0]) for name, dataset in data.items()}
    expected = linear_probe_metrics(
        torch.cat([rows["train"], rows["more"]]),
        torch.cat([data["train"].tensors[1], data["more"].tensors[1]]),
        rows["test"],
        data["test"].tensors[1],
    )
    assert found.keys() == {"test"}
    assert found["test"] == {"epoch": 3, "top1_level0": expected["top1"], "top5_level0": expected["top5"]}
    assert expected["top1"] > 0.5


def test_tester_does_not_normalise_unless_asked():
    lengths = torch.tensor([[1.0], [2.0], [8.0], [16.0]])  # the label is in the length alone, which divides exactly
    data = TensorDataset(lengths, torch.tensor([0, 0, 1, 1]))
    arguments = ({"train": data, "test": data}, 1, torch.nn.Identity(), None, [("test", ["train"])])
    assert make_tester().test(*arguments)["test"]["top1_level0"] == 1.0
    assert make_tester(normalize_embeddings=True).test(*arguments)["test"]["top1_level0"] == 0.5


def test_tester_passes_its_options_on():
    data = {"train": split(100, 1), "test": split(50, 3)}
    with pytest.warns(ConvergenceWarning, match="max_iter=2.* set standardize=True or lower inverse_l2=7.0"):
        make_tester(inverse_l2=7.0, max_iter=2, standardize=False).test(
            data, 1, torch.nn.Identity(), splits_to_eval=[("test", ["train"])]
        )
    with pytest.raises(ValueError, match="`inverse_l2` to be above 0"):
        make_tester(inverse_l2=-1.0)
    with pytest.raises(TypeError, match="accuracy_calculator"):
        make_tester(accuracy_calculator=None)


def test_tester_averages_over_label_levels():
    data = {name: split(100, seed, columns=2, spread=1.5) for name, seed in (("train", 1), ("test", 3))}
    found = make_tester(label_hierarchy_level="all").test(
        data, 1, torch.nn.Identity(), splits_to_eval=[("test", ["train"])]
    )["test"]
    assert found["AVERAGE_top1"] == pytest.approx((found["top1_level0"] + found["top1_level1"]) / 2)
    assert found["top5_level1"] == 1.0  # two labels
    assert found["top5_level0"] < 1.0


class Untouchable(torch.nn.Module):
    def forward(self, rows):
        raise AssertionError("embeddings were computed")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (None, r"got query 'train' with references \['train'\] \(the default\). Pass splits_to_eval="),
        ([("test", ["train"]), ("train", ["test", "train"])], r"got query 'train' .* \['test', 'train'\]. Pass"),
    ],
)
def test_tester_refuses_to_score_what_it_fitted_on_before_long_work(splits, message):
    data = {"train": split(10, 1), "test": split(10, 3)}
    with pytest.raises(ValueError, match=message):
        make_tester().test(data, 1, Untouchable(), splits_to_eval=splits)


def test_tester_works_in_a_trainer_with_hooks(tmp_path):
    torch.manual_seed(0)
    keeper, _, _ = logging_presets.get_record_keeper(str(tmp_path / "logs"))
    hooks = logging_presets.HookContainer(keeper, primary_metric="top1", validation_split_name="test")
    tester = make_tester(end_of_testing_hook=hooks.end_of_testing_hook)
    models = {"trunk": torch.nn.Linear(6, 6), "embedder": torch.nn.Linear(6, 4)}
    data = {"train": split(100, 1), "test": split(60, 2)}
    hook = hooks.end_of_epoch_hook(tester, data, str(tmp_path / "models"), splits_to_eval=[("test", ["train"])])
    trainers.MetricLossOnly(
        models,
        {f"{k}_optimizer": torch.optim.SGD(m.parameters(), lr=1e-4) for k, m in models.items()},
        batch_size=32,
        loss_funcs={"metric_loss": losses.ContrastiveLoss()},
        dataset=data["train"],
        data_device=CPU,
        dataloader_num_workers=0,
        iterations_per_epoch=2,
        end_of_epoch_hook=hook,
    ).train(num_epochs=2)
    history = hooks.get_accuracy_history(tester, "test", metrics=["top1", "top5"])
    assert history["epoch"] == [1, 2]
    assert history["top1_level0"][1] == tester.all_accuracies["test"]["top1_level0"]
    assert list((tmp_path / "models").glob("trunk_best*.pth"))


def test_tester_chooses_the_penalty():
    data = {"train": split(150, 1, spread=4), "test": split(200, 2, spread=4)}
    expected = linear_probe_metrics(*data["train"].tensors, *data["test"].tensors, inverse_l2="auto", seed=4)
    found = make_tester(inverse_l2="auto", seed=4).test(
        data, 1, torch.nn.Identity(), splits_to_eval=[("test", ["train"])]
    )
    assert found["test"]["top1_level0"] == expected["top1"]
