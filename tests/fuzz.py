"""Call every public function with valid and with hostile arguments, at random.

    python tests/fuzz.py [--calls 2000] [NAME ...]

Two outcomes are right: a value as the docstring says (shape, dtype, range, finite where it promises), and an error
whose text names an argument, or that a function or network of the call itself raised. Prints one line a function with
its counts and seconds, then every other outcome with the number of its call, which depends only on the function's name
and that number; the exit status is 1 if there is one. NAME is a part of a name such as `metrics.brier_score`.

Not tried: arguments that only ask for more memory or time than a machine has (`queue_size=2**40`), the functions of
`models` that build a network of timm, t-SNE and UMAP in most calls, for the time they take, and corruptions.
"""

import argparse
import contextlib
import inspect
import logging
import math
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pytorch_metric_learning import distances, reducers, regularizers
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from torch.utils.data import TensorDataset

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from helpers.exported import exported  # noqa: E402

from pml_supcon import views  # noqa: E402
from pml_supcon.corruptions import CORRUPTIONS  # noqa: E402
from pml_supcon.losses import SupConLossIn, SupConLossOut  # noqa: E402
from pml_supcon.metrics import fit_linear_probe  # noqa: E402
from pml_supcon.metrics.probe_selection import CANDIDATES  # noqa: E402
from pml_supcon.models import ProjectionHead, save_head  # noqa: E402

#: Classes that only hold results, and functions whose calls take a tenth of a second or more.
LEFT_OUT = (
    *("functional.AnchorLosses", "metrics.WorstQueries", "metrics.EmbeddingMap", "views.Change"),
    *("models.create_encoder", "models.feature_width", "models.shrink_stem"),
    *("models.save_encoder", "models.load_encoder", "corruptions.Corruption"),
)
ERRORS = (TypeError, ValueError, IndexError)
#: Texts of errors that are right although they name no argument, with the reason.
ACCEPTED = {
    "Expected reduction dim 1 to have non-zero size": "PML's BatchHardMiner takes no batch without rows",
    "torch.nonzero()": "PML's losses and miners list pairs, which the meta device does not have",
}
HOSTILE_SHARE = 0.6


class Draw:
    """The random draws of one call: sizes that its arguments share, and arrays of these sizes."""

    def __init__(self, name: str, number: int) -> None:
        self.rng = random.Random(f"{name}:{number}")
        torch.manual_seed(self.rng.getrandbits(32))
        self.samples = self.rng.choice((1, 2, 3, 4, 6, 9, 12))
        self.views = self.rng.choice((1, 2, 2, 3))
        self.width = self.rng.choice((1, 2, 3, 5))
        self.classes = self.rng.choice((1, 2, 2, 3, 5))
        self.stacked = self.rng.random() < 0.3  # (B, V, D) rather than (N, D)
        self.dtype = self.rng.choice((torch.float32,) * 4 + (torch.float64, torch.float16, torch.bfloat16))
        self.own = self.rng.random() < 0.5  # references include the queries

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


def labels_of_loss(d: Draw) -> torch.Tensor:
    labels = d.ids(d.samples)
    return labels if d.stacked else labels.repeat(d.views)


def pairs_of_loss(d: Draw) -> Any:
    number = d.samples * d.views
    return [torch.randint(number, (4,)) for _ in range(4)] if d.rng.random() < 0.2 else None


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
SWITCH += ("ref_includes_query", "collect_stats")
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
    "backend": lambda d: d.one_of("auto", "tiled", "reference"),
    "positives_cap": lambda d: d.one_of(None, None, None, None, None, d.views, 0),
    "num_views": lambda d: d.one_of(None, d.views),
    "similarity": lambda d: None if d.rng.random() < 0.9 else lambda a, b: a @ b.T,
    "indices_tuple": pairs_of_loss,
    "ref_emb": lambda d: d.rows(d.samples + 2, d.width) if d.own and d.samples % 2 else None,
    "ref_labels": lambda d: d.ids(d.samples + 2) if d.own and d.samples % 2 else None,
    "keys": lambda d: rows_of_loss(d) if d.own else None,
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
}
CLASSIFIER = {"labels": lambda d: d.array(torch.randint(d.classes + 1, (d.samples,)))}
OF_LOSS: Table = {"embeddings": rows_of_loss, "labels": labels_of_loss}
OF_MINER: Table = {"embeddings": lambda d: d.rows(d.samples, d.width), "labels": lambda d: d.ids(d.samples)}
OF_FIT = {"features": lambda d: d.array(d.rows(12, d.width)), "labels": lambda d: d.array(d.ids(12))}
OF_NETWORK: Table = {"x": lambda d: torch.randn(d.samples, d.width)}
PROBE = ("inverse_l2", "max_iter", "standardize", "seed")
LOSS_OPTIONS = ("distance", "reducer", "embedding_regularizer", "collect_stats")
SUPCON = ("temperature", "summation", "denominator", "contrast_mode", "positives_cap")
SUPCON += ("scale_by_temperature", "normalize", "similarity", "backend", "products")

#: Other arguments of some functions, and the names that their `**options` take.
SPECIAL: dict[str, Table] = {
    "functional.supcon_loss": OF_LOSS,
    "functional.group_supcon_loss": OF_LOSS,
    "losses.SupConLossOut": OF_LOSS,
    "losses.SupConLossIn": OF_LOSS,
    "losses.GlobalBatchLoss": OF_LOSS
    | {"embeddings": lambda d: rows_of_loss(d).float(), "ref_emb": lambda d: None, "ref_labels": lambda d: None}
    | {
        "loss": lambda d: d.one_of(SupConLossOut(), SupConLossIn(), pml_losses.ContrastiveLoss()),
        "group": lambda d: None,
    },
    "losses.QueueLoss": OF_LOSS
    | {"loss": lambda d: d.one_of(SupConLossOut(), SupConLossIn()), "queue_size": lambda d: 40},
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
    "miners.MeasuredMiner": OF_MINER
    | {"embeddings": lambda d: torch.randn(d.samples, d.width), "miner": lambda d: pml_miners.BatchHardMiner()},
    "views.ImageTransform": {"steps": lambda d: (), "crop_one": lambda d: None, "policy": lambda d: None},
    "views.MultiView": {"image": lambda d: torch.rand(1, 8, 8)},
    "views.MultiViewTensorDataset": {"labels": lambda d: torch.arange(d.samples), "num_views": lambda d: d.views},
    "views.split_views": {"num_views": lambda d: d.views},
    "views.evaluation_transform": {"change": lambda d: None},
    "models.ProjectionHead": OF_NETWORK,
    "models.ChunkedEncoder": OF_NETWORK,
    "models.MomentumEncoder": OF_NETWORK,
    "models.check_encoder_name": {"name": lambda d: d.one_of("resnet18", "resnet18.a1_in1k", "vit_tiny_patch16_224")},
    "metrics.per_class_means": {"scores": lambda d: {"precision_at_1": d.array(torch.rand(d.samples))}},
    "metrics.fit_linear_probe": OF_FIT,
    "metrics.choose_inverse_l2": OF_FIT,
    "metrics.fit_calibrated_probe": OF_FIT,
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
    "losses.CrossBatchMemory": ("miner",),
    "miners.OnlineHardExampleMiner": ("distance", "collect_stats"),
    "miners.CappedPositivesMiner": ("distance", "collect_stats"),
    "metrics.linear_probe_metrics": PROBE,
    "metrics.calibrated_probe_metrics": PROBE,
    "metrics.retrieval_metrics": (
        *("ref_includes_query", "recall_at", "knn_k", "knn_temperature", "at_r", "index", "chunk_size"),
    ),
}
#: How an object of a class is used: a method with the arguments of the call that its constructor does not take.
USED: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "samplers.MultiViewBatchSampler": lambda sampler: lambda: list(sampler),
    "views.ImageTransform": lambda transform: transform.__call__,
    "views.MultiView": lambda transform: transform.__call__,
    **{f"views.{name}": first_of for name in ("MultiViewDataset", "MultiViewTensorDataset")},
    "views.ChangedDataset": first_of,
    "views.SeededDataset": lambda dataset: lambda: None,
    **{f"views.{name}": lambda change: change.__call__ for name in ("Grey", "Rotation", "Sobel", "GaussianNoise")},
    "models.ProjectionHead": lambda head: lambda x: head(x) if head.training else None,
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
    else:
        limits = torch.iinfo(tensor.dtype)
        place.fill_(d.one_of(limits.max, limits.min, limits.max - 1))
    return changed.numpy() if array else changed


# Right values.


def numbers_in(value: Any) -> list[Any]:
    """Return all numbers of a nested result, None left out."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist() if value.ndim == 1 else [value.item()] if value.ndim == 0 else value.ravel().tolist()
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers_in(part)]
    if isinstance(value, list | tuple):
        return [number for part in value for number in numbers_in(part)]
    return [] if value is None or isinstance(value, str) else [value]


def chosen_among_candidates(value: Any, given: dict[str, Any]) -> str | None:
    candidates = [float(candidate) for candidate in given.get("candidates", CANDIDATES)]
    return None if value.inverse_l2 in candidates else f"not among the candidates: {value.inverse_l2}"


def finite(value: Any, given: dict[str, Any]) -> str | None:
    bad = [number for number in numbers_in(value) if not math.isfinite(number)]
    return f"not finite: {bad[:3]}" if bad else None


def unit(value: Any, given: dict[str, Any]) -> str | None:
    bad = [number for number in numbers_in(value) if not -1e-9 <= number <= 1 + 1e-6]
    return f"outside [0, 1]: {bad[:3]}" if bad else None


def unit_or_nan(value: Any, given: dict[str, Any]) -> str | None:
    return unit([number for number in numbers_in(value) if number == number], given)


def any_value(value: Any, given: dict[str, Any]) -> None:
    return None


def of_loss(value: Any, given: dict[str, Any]) -> str | None:
    """Check shapes, dtypes, and the values against the definition in float64."""
    rows, views_ = given["embeddings"], given.get("num_views")
    views_ = rows.shape[1] if rows.ndim == 3 else views_
    number = len(rows) * (views_ if rows.ndim == 3 else 1)
    number = number // views_ if given.get("contrast_mode") == "one" else number
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    if value.losses.shape != (number,) or value.valid.shape != (number,):
        return f"shapes {tuple(value.losses.shape)} and {tuple(value.valid.shape)} for {number} anchors"
    if value.valid.dtype != torch.bool or value.losses.dtype != wide:
        return f"dtypes {value.losses.dtype} and {value.valid.dtype}"
    if rows.device.type == "meta":
        return None
    if not (value.losses[~value.valid] == 0).all():
        return "an invalid anchor has a loss"
    exact = {name: each for name, each in given.items() if name not in ("group", "replicated", "backend")}
    for name in ("embeddings", "ref_emb"):
        if exact.get(name) is not None:
            exact[name] = exact[name].to(torch.float32 if rows.dtype in (torch.float16, torch.bfloat16) else wide)
    right = exported()["functional.supcon_loss"](**exact, backend="reference")
    if not torch.equal(right.valid, value.valid):
        return "other anchors are valid than in the definition"
    if not torch.equal(right.losses.isfinite(), value.losses.isfinite()):
        return f"{value.losses.tolist()} where the definition gives {right.losses.tolist()}"
    shown = right.losses.isfinite()
    near = 1e-3 * (1 + float(right.losses[shown].abs().max())) if shown.any() else 0
    if not given.get("normalize", True):  # a similarity of 1e5 has an error of 1e-2 in float32
        near += 1e-6 * float(exact["embeddings"].detach().double().square().sum(-1).max())
    if not torch.allclose(right.losses[shown], value.losses[shown], rtol=1e-3, atol=near):
        return f"{value.losses.tolist()} where the definition gives {right.losses.tolist()}"
    return None


def of_scalar_loss(value: Any, given: dict[str, Any]) -> str | None:
    if isinstance(given.get("reducer"), reducers.DoNothingReducer) and isinstance(value, dict):
        return None
    if not isinstance(value, torch.Tensor) or value.ndim != 0:
        return f"no scalar: {value!r}"
    inputs = [each for each in given.values() if isinstance(each, torch.Tensor) and each.is_floating_point()]
    held = [each for each in inputs if each.device.type == "cpu" and each.numel()]
    if isinstance(given.get("loss"), pml_losses.NTXentLoss):  # PML's own is NaN in float16
        return None
    safe = all(bool(each.isfinite().all()) and float(each.abs().max()) < 1e4 for each in held)
    if safe and value.device.type == "cpu" and not bool(value.isfinite()):
        return f"not finite: {value.item()}"
    return None


def of_miner(value: Any, given: dict[str, Any]) -> str | None:
    good = len(value) in (3, 4) and all(each.dtype == torch.int64 and each.ndim == 1 for each in value)
    return None if good else f"no indices: {value!r}"


def of_retrieval(value: Any, given: dict[str, Any]) -> str | None:
    return unit([each for name, each in value.items() if name not in ("lone_queries", "zero_rows")], given)


def of_images(value: Any, given: dict[str, Any]) -> str | None:
    good = isinstance(value, torch.Tensor) and value.dtype == torch.float32
    return None if good else f"no float32 images: {type(value).__name__}"


def of_changed(value: Any, given: dict[str, Any]) -> str | None:
    good = value.dtype == torch.uint8 and value.shape == given["images"].shape
    return None if good else f"{value.dtype} {tuple(value.shape)}"


Check = Callable[[Any, dict[str, Any]], str | None]
RIGHT: dict[str, Check] = {
    "functional.supcon_loss": of_loss,
    "functional.group_supcon_loss": of_loss,
    **{f"losses.{name}": of_scalar_loss for name in ("SupConLossOut", "SupConLossIn", "GlobalBatchLoss", "QueueLoss")},
    **{f"losses.{name}": of_scalar_loss for name in ("CrossBatchMemory", "SelfSupervisedLoss")},
    **{f"miners.{name}": of_miner for name in ("OnlineHardExampleMiner", "CappedPositivesMiner", "MeasuredMiner")},
    **{f"views.{name}": of_changed for name in ("Grey", "Rotation", "Sobel", "GaussianNoise")},
    "views.ImageTransform": of_images,
    "metrics.retrieval_scores": unit_or_nan,
    "metrics.retrieval_metrics": of_retrieval,
    "metrics.per_class_means": any_value,
    "metrics.relative_mean_corruption_error": finite,
    "metrics.choose_inverse_l2": chosen_among_candidates,
    "metrics.fit_linear_probe": any_value,
    "metrics.fit_calibrated_probe": any_value,
    **{
        f"metrics.{name}": unit
        for name in (
            *("expected_calibration_error", "classwise_calibration_error", "probe_scores", "majority_share"),
            *("score_linear_probe", "linear_probe_metrics", "transformation_probe_metrics", "corruption_errors"),
        )
    },
    "search.index_recall": unit,
}


# One function.


class Target:
    """A public function, or a class with the use of its objects."""

    def __init__(self, name: str, thing: Any) -> None:
        self.name, self.thing = name, thing
        self.table: Table = TABLE | SPECIAL.get(name, {})
        self.first = self._names(thing, MORE.get(name, ()))
        self.use = USED.get(name)
        if self.use is None and inspect.isclass(thing) and name.split(".")[0] in ("losses", "miners"):
            self.use = lambda made: made.forward
        self.second: list[str] = []
        if inspect.isclass(thing) and self.use is not None:
            self.second = self._names(self._forward(), ())

    def _forward(self) -> Any:
        if self.name.startswith("models."):
            return (lambda x, online: 0) if self.name.endswith("MomentumEncoder") else (lambda x: 0)
        if self.name.split(".")[0] in ("losses", "miners"):
            return self.thing.forward
        return self.thing.__call__ if "__call__" in vars(self.thing) else (lambda: 0)

    def _names(self, thing: Any, more: tuple[str, ...]) -> list[str]:
        parameters = inspect.signature(thing).parameters.values()
        plain = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self"]
        unknown = [name for name in plain if name not in self.table and name not in ("enqueue_mask", "crop_one")]
        if unknown:
            raise KeyError(f"Expected a strategy in TABLE for each parameter, but {self.name} has {unknown}")
        return [*(name for name in plain if name in self.table), *more]

    def call(self, number: int) -> str | None:
        """Make one call; return None for a value, "" for an error that names an argument, else the description."""
        d = Draw(self.name, number)
        names = list(dict.fromkeys([*self.first, *self.second]))
        given = {name: self.table[name](d) for name in names if name not in self.optional() or d.rng.random() < 0.5}
        if d.rng.random() < HOSTILE_SHARE and given:
            for name in d.rng.sample(sorted(given), min(len(given), d.one_of(1, 1, 2))):
                given[name] = hostile(d, given[name])
        try:
            value = self._run(given)
            found = self._check(value, given)
        except ERRORS as error:
            if of_the_caller(error) or names_an_argument(str(error), [*given, *names]):
                return ""
            found = described(error)
        except (ImportError, FileNotFoundError) as error:
            if self.name in ("models.load_head",):
                return ""
            found = described(error)
        except Exception as error:
            if of_the_caller(error):
                return ""
            found = described(error)
        return None if found is None else f"{found}\n      with {short(given)}"

    def optional(self) -> set[str]:
        found = {p.name for p in inspect.signature(self.thing).parameters.values() if p.default is not p.empty}
        return (found | set(MORE.get(self.name, ()))) - {"ref_emb", "ref_labels"}

    def _run(self, given: dict[str, Any]) -> Any:
        if self.use is None:
            return self.thing(**given)
        made = self.thing(**{name: value for name, value in given.items() if name in self.first})
        later = {name: value for name, value in given.items() if name in self.second}
        if self.name.startswith(("losses.", "miners.")) and "keys" not in self.second:
            later.pop("keys", None)
        return self.use(made)(**later)

    def _check(self, value: Any, given: dict[str, Any]) -> str | None:
        check = RIGHT.get(self.name, finite if self.name.startswith(("metrics.", "search.")) else any_value)
        wrong = check(value, given)
        return None if wrong is None else f"a wrong value, {wrong}"


def names_an_argument(text: str, names: list[str]) -> bool:
    """Return True if an error's text names a parameter: in backticks, with its value, or after "Expected".

    "labels" names `train_labels`.
    """
    words = set(re.findall(r"\w+", text)) if "Expected" in text else set()
    names = [*names, *(name.rpartition("_")[2] for name in names if name.endswith(("_labels", "_features")))]
    return any(f"`{name}" in text or f"{name}=" in text or name in words for name in names)


def of_the_caller(error: BaseException) -> bool:
    """Return True if a function, network or miner of PML that the call passed has raised the error."""
    frames = traceback.extract_tb(error.__traceback__)[3:]
    return any(
        frame.filename == __file__ or frame.filename.endswith(("nn/modules/linear.py", "nn/modules/batchnorm.py"))
        for frame in frames
    ) or any(text in str(error) for text in ("Identity", *ACCEPTED))


def described(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}: {str(error)[:200]!r}"


def short(given: dict[str, Any]) -> str:
    def one(value: Any) -> str:
        if isinstance(value, torch.Tensor | np.ndarray):
            shape = "nested" if getattr(value, "is_nested", False) else tuple(value.shape)
            more = f"{getattr(value, 'device', '')} {getattr(value, 'layout', '')}"
            return f"{type(value).__name__}({value.dtype} {shape} {more})"
        with contextlib.suppress(Exception):
            return repr(value)[:80]
        return type(value).__name__

    return ", ".join(f"{name}={one(value)}" for name, value in given.items())


def fuzz(name: str, calls: int) -> tuple[str, Counter[str], float, dict[str, str]]:
    """Make the calls of one function; return the counts, the seconds and one other outcome of each kind."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    target = Target(name, exported()[name])
    counts: Counter[str] = Counter(values=0, errors=0, others=0)
    others: dict[str, str] = {}
    start = time.perf_counter()
    for number in range(calls):
        found = target.call(number)
        counts["values" if found is None else "errors" if found == "" else "others"] += 1
        if found:
            key = re.sub(r"[\d.]+", "#", found.split("\n")[0])
            others.setdefault(key, f"call {number}: {found}")
    return name, counts, time.perf_counter() - start, others


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of names; all functions by default")
    parser.add_argument("--calls", type=int, default=2000, help="calls of each function")
    options = parser.parse_args()
    names = [name for name in exported() if name not in LEFT_OUT]
    names = [name for name in names if not options.names or any(part in name for part in options.names)]
    total: Counter[str] = Counter()
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(min(len(names), len(os.sched_getaffinity(0)))) as pool:
        jobs = [pool.apply_async(fuzz, (name, options.calls)) for name in names]
        for job in jobs:
            name, counts, seconds, others = job.get()
            total += counts
            found = " ".join(f"{counts[kind]:5} {kind}" for kind in ("values", "errors", "others"))
            print(f"{name:40} {found} {seconds:7.1f} s", flush=True)
            for each in others.values():
                print(f"    {each}")
    outcomes = f"{total['values']} values, {total['errors']} errors that name an argument, {total['others']} others"
    print(f"{len(names)} functions, {sum(total.values())} calls: {outcomes}; {time.perf_counter() - start:.0f} s")
    return 1 if total["others"] else 0


if __name__ == "__main__":
    sys.exit(main())
