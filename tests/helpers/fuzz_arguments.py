"""Arguments for the random calls of ``tests/fuzz.py``: valid ones by parameter, and hostile ones by kind."""

import math
import os
import random
import tempfile
import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pytorch_metric_learning import distances, reducers, regularizers
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from torch.utils.data import TensorDataset

from pml_supcon import targets, views
from pml_supcon._layouts import repeat_labels
from pml_supcon.corruptions import CORRUPTIONS
from pml_supcon.functional import supcon_loss
from pml_supcon.losses import SupConLossIn, SupConLossOut
from pml_supcon.metrics import fit_linear_probe
from pml_supcon.models import ProjectionHead, save_head


class Draw:
    """The random draws of one call: sizes that its arguments share, and arrays of these sizes."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self.rng = random.Random(f"{name}:{number}")
        torch.manual_seed(self.rng.getrandbits(32))
        self.samples = self.rng.choice((1, 2, 3, 4, 6, 9, 12))
        self.views = self.rng.choice((1, 2, 2, 3))
        self.width = self.rng.choice((1, 2, 3, 5))
        self.classes = self.rng.choice((1, 2, 2, 3, 5))
        self.stacked = self.rng.random() < 0.3  # (B, V, D) rather than (N, D)
        self.dtype = self.rng.choice((torch.float32,) * 4 + (torch.float64, torch.float16, torch.bfloat16))
        self.own = self.rng.random() < 0.5  # references include the queries

    @cached_property
    def target(self) -> targets.Target | None:
        """None or a target, by a generator of its own: calls without one draw nothing for it."""
        kinds = (targets.LabelSets(), targets.SoftLabels(), targets.Hierarchy([1, 2]), targets.Kernel(0.5))
        return random.Random(f"{self.name}:{self.number}").choice((None, None, *kinds))

    def one_of(self, *values: Any) -> Any:
        """Return one of the values, called if it is a function of no arguments."""
        return self.rng.choice(values)

    def rows(self, *shape: int) -> torch.Tensor:
        return (torch.randn(*shape) * self.one_of(1, 1, 1, 0.01, 100)).to(self.dtype)

    def ids(self, number: int, least: int = 0) -> torch.Tensor:
        """Return labels of a random integer dtype."""
        dtype = self.one_of(torch.int64, torch.int64, torch.int32, torch.uint8, torch.int16)
        return (torch.arange(number) % self.classes)[torch.randperm(number)].to(dtype) + least

    def array(self, tensor: torch.Tensor) -> Any:
        """Return the same values as a tensor or an array, in any layout that a user may have."""
        kind = self.rng.randrange(8)
        if kind == 0 and tensor.is_floating_point():
            return tensor.clone().requires_grad_()
        if kind == 1 and tensor.ndim == 2:
            return tensor.T.contiguous().T
        if kind in (0, 1, 2) or tensor.dtype == torch.bfloat16:
            return tensor
        array = tensor.numpy()
        if kind == 3:
            return np.asfortranarray(array)
        if kind == 4:
            return array[::-1].copy()[::-1]  # negative strides
        if kind == 5:
            return array.astype(array.dtype.newbyteorder(">"))
        return array


# Valid arguments, by the name of the parameter.


def rows_of_loss(d: Draw) -> torch.Tensor:
    shape = (d.samples, d.views, d.width) if d.stacked else (d.samples * d.views, d.width)
    return d.rows(*shape)


def labels_of_sampler(d: Draw) -> Any:
    """Return label sets where `d.stacked`, else classes."""
    return d.array(torch.rand(d.samples, d.classes) < 0.4 if d.stacked else d.ids(d.samples))


def labels_of_loss(d: Draw) -> torch.Tensor:
    labels = d.ids(d.samples)
    return labels if d.stacked else labels.repeat(d.views)


def rich_labels(d: Draw, target: type | None, number: int) -> torch.Tensor:
    """Return labels as a kind of target expects them."""
    classes = d.ids(number).long()
    if target is targets.LabelSets:
        sets = torch.rand(number, d.classes) < 0.5
        return d.one_of(sets, sets.int(), sets.double())
    if target is targets.SoftLabels:
        return torch.rand(number, d.classes).to(d.one_of(torch.float32, torch.float64)) + 0.01
    if target is targets.Hierarchy:
        return torch.stack([classes // 2, classes], dim=1).to(d.one_of(torch.int64, torch.int32))
    if target is targets.Kernel:
        return d.one_of(torch.randn(number), torch.randn(number, 2), classes)
    return d.ids(number)


def rich_splits(target: type) -> "Table":
    """Return labels of training rows and of test rows, as a kind of target expects them."""
    return {
        "train_labels": lambda d: d.array(rich_labels(d, target, 12)),
        "test_labels": lambda d: d.array(rich_labels(d, target, d.samples)),
    }


def labels_of_target(d: Draw) -> torch.Tensor:
    labels = rich_labels(d, type(d.target) if d.target else None, d.samples)
    return labels if d.stacked else repeat_labels(labels, d.views)


def ref_labels_of_target(d: Draw) -> Any:
    return rich_labels(d, type(d.target) if d.target else None, d.samples + 2) if d.own and d.samples % 2 else None


def numbers_of_loss(d: Draw) -> torch.Tensor:
    labels = labels_of_loss(d)
    return d.one_of(labels, labels / 2, torch.stack([labels, labels], dim=1))


def pairs_of_loss(d: Draw) -> Any:
    number = d.samples * d.views
    return [torch.randint(number, (4,)) for _ in range(4)] if d.rng.random() < 0.2 else None


def anchors_of_loss(d: Draw) -> Any:
    return torch.rand(d.samples if d.stacked else d.samples * d.views) < 0.7 if d.rng.random() < 0.3 else None


def probe(d: Draw) -> Any:
    rows = torch.randn(8, d.width)
    return fit_linear_probe(rows, torch.arange(8) % d.one_of(2, 3))


def probabilities(d: Draw) -> Any:
    return d.array(torch.randn(d.samples, d.classes + 1).softmax(1))


def grid(d: Draw) -> Any:
    scores = {"accuracy": d.rng.random(), "ece": d.rng.random()}
    return {(name, s): scores for name in CORRUPTIONS[: d.samples] for s in range(1, d.views + 1)}


def errors(d: Draw) -> Any:
    return {name: [d.rng.random() for _ in range(5)] for name in CORRUPTIONS}


def as_floats(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255


def data(d: Draw) -> Any:
    images = torch.randint(256, (d.samples, 1, 8, 8), dtype=torch.uint8)
    return TensorDataset(images, torch.arange(d.samples))


def images(d: Draw) -> Any:
    return torch.randint(256, (d.samples, 1, 8, 8), dtype=torch.uint8)


def head_file(d: Draw) -> Path:
    file = Path(tempfile.gettempdir()) / f"fuzz-{os.getpid()}.safetensors"
    save_head(ProjectionHead(2, 2), file)
    return file


def first_of(dataset: Any) -> Callable[[], Any]:
    return lambda: dataset[0] if len(dataset) else None


Table = dict[str, Callable[[Draw], Any]]

SWITCH = ("normalize", "scale_by_temperature", "ref_starts_with_batch", "at_r", "clustering", "standardize", "flip")
SWITCH += ("drop_last", "batch_norm", "symmetric", "use_trunk_output", "normalize_embeddings", "replicated")
SWITCH += ("ref_includes_query", "collect_stats", "with_geometry", "inverse")
COUNT = (
    "bins",
    "batches",
    "max_iter",
    "neighbours",
    "queries",
    "num_layers",
    "knn_k",
    "chunk_size",
    "max_rows",
    "most",
)
COUNT += ("cap", "max_per_class", "out_features", "hidden_features", "severity", "image_size", "queue_size")
COUNT += ("most", "memory_size", "height", "width", "num_replicas", "pair_batch_size")

TABLE: Table = {
    **{name: lambda d: d.one_of(True, False) for name in SWITCH},
    **{name: lambda d: d.rng.randint(1, 20) for name in COUNT},
    "ref_starts_with_batch": lambda d: d.rng.random() < 0.1,
    "embeddings": lambda d: d.array(d.rows(d.samples, d.width)),
    "features": lambda d: d.array(d.rows(d.samples, d.width)),
    "labels": lambda d: d.array(d.ids(d.samples)),
    "query": lambda d: d.array(d.rows(d.samples, d.width)),
    "reference": lambda d: d.array(d.rows(d.samples + 3, d.width)),
    "query_labels": lambda d: d.array(d.ids(d.samples)),
    "reference_labels": lambda d: d.array(d.ids(d.samples + 3)),
    "train_features": lambda d: d.array(d.rows(12, d.width)),
    "train_labels": lambda d: d.array(d.ids(12)),
    "test_features": lambda d: d.array(d.rows(d.samples, d.width)),
    "test_labels": lambda d: d.array(d.ids(d.samples)),
    "train": lambda d: [d.array(torch.randn(4, d.width)) for _ in range(d.views)],
    "test": lambda d: [d.array(torch.randn(3, d.width)) for _ in range(d.views)],
    "logits": lambda d: d.array(torch.randn(d.samples, d.classes + 1) * 3),
    "probabilities": probabilities,
    "scores": grid,
    "errors": errors,
    "baseline": errors,
    "clean_error": lambda d: d.rng.random() / 4,
    "baseline_clean_error": lambda d: d.rng.random() / 4,
    "probe": probe,
    "predictions": lambda d: d.array(d.ids(d.samples)),
    "matrix": lambda d: d.array(torch.rand(d.samples, d.samples)),
    "temperature": lambda d: d.one_of(0.05, 0.1, 0.5, 1, 2.0),
    "knn_temperature": lambda d: d.one_of(0.07, 1, math.inf),
    "margin": lambda d: d.one_of(0, 0.05, 1.0),
    "held_out": lambda d: d.one_of(0.2, 0.5, 0.9),
    "share": lambda d: d.one_of(0.25, 0.5, 1),
    "shares": lambda d: d.one_of([0.5, 1.0], (0.1,), [1]),
    "shots": lambda d: d.one_of([1], (1, 2), []),
    "draws": lambda d: d.rng.randint(2, 4),
    "recall_at": lambda d: d.one_of((1, 2, 4, 8), [1], []),
    "candidates": lambda d: d.one_of([0.1, 1.0], (1,), [1e-3, 1e3]),
    "k": lambda d: d.one_of((1,), [1, 2]),
    "inverse_l2": lambda d: d.one_of(1.0, 0.1, 1, math.inf),
    "classifier": lambda d: d.one_of("prototypes", "prototypes", "prototypes", "logistic"),
    "methods": lambda d: ["pca"] if d.rng.random() < 0.995 else ["tsne"],
    "index": lambda d: d.one_of("exact", "exact", "ivf", "hnsw", "Flat"),
    "seed": lambda d: d.one_of(0, 1, 12345),
    "loss": lambda d: d.one_of("supcon_out", "supcon_in", "triplet"),
    "summation": lambda d: d.one_of("out", "in"),
    "denominator": lambda d: d.one_of("all", "one_positive", "negatives"),
    "contrast_mode": lambda d: d.one_of("all", "all", "one"),
    "backend": lambda d: d.one_of("auto", "dense", "tiled", "reference"),
    "products": lambda d: d.one_of("float32", "float32", "float16"),
    "class_balanced": lambda d: d.rng.random() < 0.2,
    "anchors": anchors_of_loss,
    "positives_cap": lambda d: d.one_of(None, None, None, None, None, d.views, 0),
    "ignore_label": lambda d: d.one_of(None, None, None, None, 0, 1),
    "num_views": lambda d: d.one_of(None, d.views),
    "similarity": lambda d: None if d.rng.random() < 0.9 else lambda a, b: a @ b.T,
    "indices_tuple": pairs_of_loss,
    "ref_emb": lambda d: d.rows(d.samples + 2, d.width) if d.own and d.samples % 2 else None,
    "ref_labels": lambda d: d.ids(d.samples + 2) if d.own and d.samples % 2 else None,
    "keys": lambda d: rows_of_loss(d) if d.own else None,
    "enqueue_mask": lambda d: torch.rand(d.samples) < 0.5 if d.own else None,
    "group": lambda d: dist.group.WORLD,
    "choose": lambda d: d.one_of("random", "hardest", "easiest"),
    "kind": lambda d: d.one_of("pairs", "triplets"),
    "generator": lambda d: d.one_of(None, torch.Generator().manual_seed(1)),
    "distance": lambda d: d.one_of(None, distances.LpDistance(), distances.CosineSimilarity()),
    "miner": lambda d: d.one_of(None, pml_miners.BatchHardMiner()),
    "reducer": lambda d: d.one_of(
        None, reducers.MeanReducer(), reducers.ClassWeightedReducer(torch.ones(d.classes)), reducers.DoNothingReducer()
    ),
    "embedding_regularizer": lambda d: d.one_of(None, None, regularizers.LpRegularizer()),
    "dtype": lambda d: d.one_of(torch.float32, torch.float64),
    "batch_size": lambda d: d.rng.randint(1, 12),
    "samples_per_class": lambda d: None,
    "labels_are": lambda d: "sets" if d.stacked else "classes",
    "draw": lambda d: "effective_number" if d.own else d.one_of("uniform", "class_balanced"),
    "beta": lambda d: 0.9 if d.own else None,
    "max_per_class": lambda d: d.one_of(None, 1, 2, 3),
    "rank": lambda d: 0,
    "num_replicas": lambda d: d.one_of(1, 1, 2),
    "embedding_size": lambda d: d.width,
    "in_features": lambda d: d.width,
    "encoder": lambda d: torch.nn.Linear(d.width, 2),
    "momentum": lambda d: d.one_of(0, 0.5, 0.999),
    "online": lambda d: torch.nn.Linear(d.width, 2),
    "head": lambda d: ProjectionHead(d.width, 2),
    "file": head_file,
    "x": lambda d: d.rows(d.samples, d.width),
    "rows": lambda d: d.rows(d.samples * d.views, d.width),
    "name": lambda d: d.one_of(*views.AUGMENTATIONS),
    "mean": lambda d: d.one_of([0.5], (0.5,)),
    "std": lambda d: d.one_of([0.25], (0.25,)),
    "family": lambda d: d.one_of("natural", "digits"),
    "crop_scale": lambda d: d.one_of((0.2, 1.0), [0.5, 0.5]),
    "crop_ratio": lambda d: d.one_of((0.75, 1.5), [1, 1]),
    "scale": lambda d: d.one_of((0.85, 1.15), [1, 1]),
    "jitter": lambda d: d.one_of((0.4, 0.4, 0.4, 0.1), [0, 0, 0, 0]),
    "jitter_probability": lambda d: d.one_of(0, 0.8, 1),
    "grey_probability": lambda d: d.one_of(0, 0.2, 1),
    "rotation": lambda d: d.one_of(0, 15.0),
    "shift": lambda d: d.one_of(0, 0.1),
    "shear": lambda d: d.one_of(0, 10.0),
    "brightness": lambda d: d.one_of(0, 0.3),
    "contrast": lambda d: d.one_of(0, 0.3),
    "degrees": lambda d: d.one_of(0, 90, 180, 270),
    "in_chans": lambda d: d.one_of(1, 3),
    "change": lambda d: d.one_of(None, views.Sobel(), views.Rotation(90)),
    "images": images,
    "indices": lambda d: torch.arange(d.samples),
    "image": lambda d: images(d)[0],
    "crop": lambda d: as_floats,
    "transform": lambda d: as_floats,
    "dataset": data,
    "device": lambda d: "cpu",
    "tasks": lambda d: d.one_of(None, {"sobel": (None, views.Sobel())}, views.transformation_tasks(in_chans=1)),
    "corruptions": lambda d: d.one_of(["fog"], ["fog", "snow"]),
    "severities": lambda d: d.one_of([1], (1, 5)),
    "strengths": lambda d: d.one_of("auto", "32", "224"),
    "masks": lambda d: d.ids(d.views * d.samples * d.classes).view(d.views, d.samples, d.classes),
    "num_pixels": lambda d: d.rng.randint(1, 20),
    "ignore_value": lambda d: d.one_of(None, 0, 255),
    "area_exponent": lambda d: d.one_of(-0.6, 0, -1.0),
    "by": lambda d: d.one_of("mask", "class"),
}
OF_POINTS: Table = {
    "points": lambda d: d.rows(d.samples, d.views + 1, d.width, 2),
    "geometry": lambda d: torch.eye(2, 3) + 0.2 * torch.rand(d.samples, d.views + 1, 2, 3),
    "weights": lambda d: torch.rand(d.samples, d.views + 1, d.width),
}
CLASSIFIER = {"labels": lambda d: d.array(torch.randint(d.classes + 1, (d.samples,)))}
OF_LOSS: Table = {"embeddings": rows_of_loss, "labels": labels_of_loss}
OF_LOSS |= {"margin": lambda d: d.one_of(0.0, 0.0, 0.0, 0.0, 0, 1)}
OF_TARGET: Table = OF_LOSS | {"labels": labels_of_target, "ref_labels": ref_labels_of_target}
OF_TARGET |= {"target": lambda d: d.target}
OF_MINER: Table = {"embeddings": lambda d: d.rows(d.samples, d.width), "labels": lambda d: d.ids(d.samples)}
OF_FIT = {"features": lambda d: d.array(d.rows(12, d.width)), "labels": lambda d: d.array(d.ids(12))}
OF_NETWORK: Table = {"x": lambda d: torch.randn(d.samples, d.width)}
OF_PIXELS: Table = {"features": lambda d: d.rows(d.views, d.width, d.samples, d.classes)}
PROBE = ("inverse_l2", "max_iter", "standardize", "seed")
LOSS_OPTIONS = ("distance", "reducer", "embedding_regularizer", "collect_stats")
SUPCON = ("temperature", "summation", "denominator", "contrast_mode", "positives_cap")
SUPCON += ("margin", "class_balanced", "ignore_label")
SUPCON += ("scale_by_temperature", "normalize", "similarity", "backend", "products")

OF_DISTILLATION: Table = {
    "embeddings": rows_of_loss,
    "past_embeddings": rows_of_loss,
    "past_temperature": lambda d: d.one_of(0.01, 0.2, 1),
    "backend": lambda d: d.one_of("tiled", "reference"),
}
NORMALIZATION: Table = {"normalization": lambda d: d.one_of("sum", "count")}
#: Other arguments of some functions, and the names that their `**options` take.
SPECIAL: dict[str, Table] = {
    "targets.LabelSets": NORMALIZATION
    | {"labels": lambda d: rich_labels(d, targets.LabelSets, 6)}
    | {"similarity": lambda d: d.one_of("jaccard", "overlap", "any"), "threshold": lambda d: d.one_of(0, 0.5, 1.0)},
    "targets.SoftLabels": NORMALIZATION | {"labels": lambda d: rich_labels(d, targets.SoftLabels, 6)},
    "targets.Hierarchy": {
        "labels": lambda d: rich_labels(d, targets.Hierarchy, 6),
        "level_weights": lambda d: d.one_of([1, 2.0], (0, 1)),
    },
    "targets.Kernel": NORMALIZATION
    | {"labels": lambda d: rich_labels(d, targets.Kernel, 6), "sigma": lambda d: d.one_of(0.5, 1, 20.0)},
    "functional.supcon_loss": OF_TARGET,
    "functional.group_supcon_loss": OF_LOSS,
    "losses.SupConLossOut": OF_TARGET,
    "losses.SupConLossIn": OF_TARGET,
    "functional.rank_n_contrast_loss": OF_LOSS | {"labels": numbers_of_loss},
    "losses.RankNContrastLoss": OF_LOSS | {"labels": numbers_of_loss},
    "functional.relation_distillation_loss": OF_DISTILLATION,
    "losses.RelationDistillation": OF_DISTILLATION,
    "functional.mask_prototype_loss": OF_PIXELS,
    "losses.MaskPrototypeLoss": OF_PIXELS,
    "losses.PixelSupConLoss": OF_PIXELS | {"loss": lambda d: d.one_of(SupConLossOut(), SupConLossIn())},
    "losses.CrossModalLoss": {
        "embeddings": lambda d: d.rows(d.samples, d.width),
        "ref_emb": lambda d: d.rows(d.samples, d.width),
        "labels": lambda d: d.ids(d.samples),
        "ref_labels": lambda d: None,
        "loss": lambda d: d.one_of(SupConLossOut(), SupConLossIn()),  # PML's distances have no bfloat16
    },
    "functional.view_consistency_loss": OF_POINTS,
    "losses.ViewConsistencyLoss": OF_POINTS,
    "views.map_points": OF_POINTS,
    "losses.LearnableTemperature": {
        "initial": lambda d: d.one_of(0.1, 0.5),
        "minimum": lambda d: d.one_of(0.01, 0.1),
        "maximum": lambda d: d.one_of(0.5, 1),
    },
    "losses.GlobalBatchLoss": OF_LOSS
    | {"embeddings": lambda d: rows_of_loss(d).float(), "ref_emb": lambda d: None, "ref_labels": lambda d: None}
    | {
        "loss": lambda d: d.one_of(SupConLossOut(), SupConLossIn(), pml_losses.ContrastiveLoss()),
        "group": lambda d: None,
    },
    "losses.QueueLoss": OF_LOSS
    | {"loss": lambda d: d.one_of(SupConLossOut(), SupConLossIn()), "queue_size": lambda d: 40},
    "losses.NearestNeighbourLoss": {
        "predictions": lambda d: d.rows(d.samples, 2, d.width),
        "projections": lambda d: d.rows(d.samples, 2, d.width),
        "labels": lambda d: d.ids(d.samples),
        "loss": lambda d: d.one_of(SupConLossOut(), SupConLossIn()),
        "queue_size": lambda d: 40,
        "neighbours": lambda d: d.one_of("nearest", "same_class", "positives"),
    },
    "losses.CrossBatchMemory": OF_MINER
    | {"embeddings": lambda d: torch.randn(d.samples, d.width)}
    | {"loss": lambda d: d.one_of(SupConLossOut(), pml_losses.ContrastiveLoss()), "memory_size": lambda d: 40},
    "losses.SelfSupervisedLoss": {
        "embeddings": lambda d: d.rows(d.samples, d.width),
        "ref_emb": lambda d: d.rows(d.samples, d.width),
        "loss": lambda d: d.one_of(SupConLossOut(), pml_losses.NTXentLoss()),
    },
    "miners.OnlineHardExampleMiner": OF_MINER
    | {"loss": lambda d: d.one_of(None, None, pml_losses.TripletMarginLoss(), pml_losses.ContrastiveLoss())},
    "miners.CappedPositivesMiner": OF_MINER,
    "samplers.MultiViewBatchSampler": {"labels": labels_of_sampler},
    "miners.MeasuredMiner": OF_MINER
    | {"embeddings": lambda d: torch.randn(d.samples, d.width), "miner": lambda d: pml_miners.BatchHardMiner()},
    "views.ImageTransform": {"steps": lambda d: (), "crop_one": lambda d: None, "policy": lambda d: None},
    "views.MultiView": {"image": lambda d: torch.rand(1, 8, 8)},
    "views.BatchMix": {
        "kind": lambda d: d.one_of("mixup", "cutmix", "both"),
        "alpha": lambda d: d.one_of(0.2, 1, 1.0),
        "num_classes": lambda d: d.one_of(None, d.classes),
        "images": lambda d: d.one_of(images(d), images(d).float(), torch.rand(d.samples, d.views, 1, 8, 8)),
        "labels": lambda d: d.one_of(d.ids(d.samples), torch.rand(d.samples, d.classes), torch.ones(d.samples, 3) > 0),
    },
    "views.SeededDataset": {"batch_transform": lambda d: d.one_of(None, views.BatchMix("cutmix", num_classes=2))},
    "views.MultiViewTensorDataset": {"labels": lambda d: torch.arange(d.samples), "num_views": lambda d: d.views},
    "views.split_views": {"num_views": lambda d: d.views},
    "views.evaluation_transform": {"change": lambda d: None},
    "models.ProjectionHead": OF_NETWORK,
    "models.PredictionHead": OF_NETWORK | {"features": lambda d: d.width},
    "models.ChunkedEncoder": OF_NETWORK,
    "models.MomentumEncoder": OF_NETWORK,
    "models.check_encoder_name": {"name": lambda d: d.one_of("resnet18", "resnet18.a1_in1k", "vit_tiny_patch16_224")},
    "metrics.per_class_means": {"scores": lambda d: {"precision_at_1": d.array(torch.rand(d.samples))}},
    **{
        f"metrics.{name}": {
            "scores": lambda d: d.array(torch.randn(d.samples, d.classes + 1)),
            "tasks": lambda d: [[label] for label in range(min(d.classes, d.samples))],
        }
        for name in ("class_il_accuracies", "task_il_accuracies")
    },
    "metrics.fit_linear_probe": OF_FIT,
    "metrics.choose_inverse_l2": OF_FIT,
    "metrics.fit_calibrated_probe": OF_FIT,
    "metrics.label_sets_probe_metrics": rich_splits(targets.LabelSets),
    "metrics.level_probe_metrics": rich_splits(targets.Hierarchy),
    "metrics.number_probe_metrics": rich_splits(targets.Kernel),
    "metrics.hard_mining_curve": {"batch_size": lambda d: d.one_of(None, None, 2)},
    "testers.CorruptionTester": {"baseline": lambda d: None},
    "testers.HardMiningTester": {"batch_size": lambda d: 4},
    **{
        f"metrics.{name}": CLASSIFIER
        for name in (
            *("expected_calibration_error", "classwise_calibration_error", "negative_log_likelihood"),
            *("brier_score", "reliability_diagram", "fit_temperature", "calibration_metrics"),
        )
    },
}
MORE = {
    "functional.group_supcon_loss": SUPCON,
    "losses.SupConLossOut": LOSS_OPTIONS,
    "losses.SupConLossIn": LOSS_OPTIONS,
    "losses.RankNContrastLoss": LOSS_OPTIONS,
    "losses.RelationDistillation": LOSS_OPTIONS,
    "losses.CrossBatchMemory": ("miner",),
    "miners.OnlineHardExampleMiner": ("distance", "collect_stats"),
    "miners.CappedPositivesMiner": ("distance", "collect_stats"),
    "metrics.linear_probe_metrics": PROBE,
    "metrics.calibrated_probe_metrics": PROBE,
    "metrics.label_sets_probe_metrics": PROBE,
    "metrics.level_probe_metrics": PROBE,
    "metrics.retrieval_metrics": (
        *("ref_includes_query", "recall_at", "knn_k", "knn_temperature", "at_r", "index", "chunk_size"),
    ),
}


def use_of_target(target: targets.Target) -> Callable[..., Any]:
    return lambda labels: supcon_loss(torch.arange(18.0).view(6, 3).cos(), labels, target=target)


#: How an object of a class is used: a method with the arguments of the call that its constructor does not take.
USED: dict[str, Callable[[Any], Callable[..., Any]]] = {
    **{f"targets.{name}": use_of_target for name in ("LabelSets", "SoftLabels", "Hierarchy", "Kernel")},
    "samplers.MultiViewBatchSampler": lambda sampler: lambda: list(sampler),
    "views.ImageTransform": lambda transform: transform.__call__,
    "views.MultiView": lambda transform: transform.__call__,
    **{f"views.{name}": first_of for name in ("MultiViewDataset", "MultiViewTensorDataset")},
    "views.ChangedDataset": first_of,
    "views.SeededDataset": lambda dataset: lambda: None,
    "views.BatchMix": lambda mix: mix.__call__,
    **{f"views.{name}": lambda change: change.__call__ for name in ("Grey", "Rotation", "Sobel", "GaussianNoise")},
    **dict.fromkeys(
        ("models.ProjectionHead", "models.PredictionHead"),
        lambda head: lambda x: head(x) if head.training else None,
    ),
    "models.ChunkedEncoder": lambda encoder: encoder.forward,
    "models.MomentumEncoder": lambda encoder: lambda x, online: (encoder.update_parameters(online), encoder(x))[1],
}


# Hostile arguments, by the kind of the valid one.

HUGE = (2**63, -(2**63) - 1, 10**30, 10**5000)
ANYTHING = (None, object(), "x", "", b"x", [], {}, math.nan, 10**30, 1j, -1, True, [None], ("a", 1), ...)


def no_result(*_: Any, **__: Any) -> None:
    return None


def hostile(d: Draw, value: Any) -> Any:
    """Return something that a user may pass by mistake instead of the value."""
    others: list[Any] = [d.one_of(*ANYTHING), d.one_of(*ANYTHING), torch.empty(0, device="meta"), torch.zeros(2, 2)]
    if isinstance(value, torch.Tensor | np.ndarray):
        return hostile_array(d, value) if d.rng.random() < 0.85 else d.one_of(*others)
    if isinstance(value, bool):
        texts = ("", "True", "no", 0, 1, 2.0, torch.tensor(True), torch.tensor([True, False]), torch.empty(0))
        others += [*texts, np.array([]), np.array(0), np.bool_(True), Decimal(1)]
    elif isinstance(value, int | float):
        more = (
            *HUGE,
            -1,
            0,
            2.5,
            2.0,
            -0.5,
            math.nan,
            math.inf,
            -math.inf,
            "1",
            5e-324,
            Fraction(1, 3),
            Decimal("0.5"),
        )
        others += [
            *more,
            Decimal("0.5"),
            True,
            torch.tensor(1),
            torch.tensor([1, 2]),
            np.int64(2),
            np.float32(0.5),
            np.array([1, 2]),
        ]
        others += [Fraction(10**400), 1e308, 2**62] if isinstance(value, float) else []
    elif isinstance(value, str):
        others += [
            value.upper(),
            value[:-1],
            "x" * 1000,
            "\x00",
            "\ud800",
            b"x",
            3,
            torch.zeros(2),
            np.array(["a", "b"]),
        ]
    elif isinstance(value, list | tuple):
        one = value[0] if value else 1
        others += [value[:0], [*value, *value], list(value) * 3, [*value, None], [str(one)], "12", iter(value), set()]
        others += [[10**30], [-1], [0], [math.nan], [hostile(d, one)], {1: 2}, np.array([1.0, 2.0]), torch.ones(3)]
    elif isinstance(value, dict) and value:
        first = next(iter(value))
        others += [{}, {**value, first: hostile(d, value[first])}, {**value, first: None}, {**value, 3: value[first]}]
        others += [dict(list(value.items())[1:]), list(value), {**value, "other": 1}]
    elif isinstance(value, Path):
        others += [value.parent, value.with_name("absent.safetensors"), value.with_suffix(".pt"), str(value), "\x00"]
    elif callable(value):
        others += [no_result, torch.nn.Identity, torch.nn.Identity(), lambda x, *_: x.sum(), lambda *_: 3]
    return d.one_of(*others)


def hostile_array(d: Draw, given: Any) -> Any:
    """Return an array with another dtype, layout, device or shape, or with values that do not fit."""
    array = isinstance(given, np.ndarray)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.from_numpy(np.array(given, dtype=given.dtype.newbyteorder("="))) if array else given.detach()
    kind = d.rng.randrange(30)
    wide = tensor.float() if tensor.is_floating_point() else tensor
    if kind == 0:
        return tensor.to("meta")
    if kind == 1:
        return tensor.to_sparse()
    if kind == 2:
        return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8)
    if kind == 3:
        return tensor.to(torch.complex64)
    if kind == 4:
        return tensor.long() if tensor.is_floating_point() else tensor.float()
    if kind == 5:
        return tensor.bool()
    if kind == 6:
        return tensor[:0]
    if kind == 7:
        return tensor[:-1]
    if kind == 8:
        return torch.cat([tensor, tensor])
    if kind == 9:
        return tensor.unsqueeze(d.one_of(0, -1))
    if kind == 10:
        return tensor.flatten()[:1].squeeze()
    if kind == 11:
        return tensor.tolist()
    if kind == 12:
        return np.array(tensor.tolist(), dtype=object)
    if kind == 13:
        return np.array(tensor.tolist(), dtype=d.one_of("U8", "S8"))
    if kind == 14:
        return torch.nested.nested_tensor([tensor.float()], layout=d.one_of(torch.strided, torch.jagged))
    if kind == 15:
        return wide.float().to_mkldnn() if wide.ndim else wide
    if kind == 16 and wide.ndim == 2:
        return wide.float().to_sparse_csr()
    if kind == 17:
        return tensor.float().to(d.one_of(torch.float8_e4m3fn, torch.float8_e5m2))
    if kind == 18:
        return tensor.float().abs().to(d.one_of(torch.uint16, torch.uint32, torch.uint64))
    if kind == 19:
        return np.ma.masked_array(tensor.double().numpy(), mask=True)
    if kind == 20:
        return tensor.double().numpy().astype(np.longdouble)
    if tensor.numel() == 0 or kind == 21:
        return torch.zeros_like(tensor)
    changed = tensor.clone(memory_format=torch.contiguous_format)
    place = changed.view(-1)[d.rng.randrange(tensor.numel()) : None if kind % 2 else tensor.numel()]
    if tensor.is_floating_point():
        limit = torch.finfo(tensor.dtype).max
        place.fill_(d.one_of(math.nan, math.inf, -math.inf, limit, -limit, 1e-30, 0))
    elif tensor.dtype == torch.bool:
        place.fill_(d.one_of(False, True))
    else:
        limits = torch.iinfo(tensor.dtype)
        place.fill_(d.one_of(limits.max, limits.min, limits.max - 1))
    return changed.numpy() if array else changed
