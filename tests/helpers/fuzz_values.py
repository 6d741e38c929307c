"""Checks of the values that the random calls of ``tests/fuzz.py`` return."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import reducers

from helpers.exported import exported
from pml_supcon.metrics.probe_selection import CANDIDATES


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


def of_rank_loss(value: Any, given: dict[str, Any]) -> str | None:
    rows = given["embeddings"]
    number, wide = rows.shape[:-1].numel(), torch.promote_types(rows.dtype, torch.float32)
    if value.losses.shape != (number,) or value.losses.dtype != wide or len(value.valid.unique()) > 1:
        return f"{value.losses.dtype} {tuple(value.losses.shape)} for {number} anchors"
    safe = bool(rows.isfinite().all()) and float(rows.detach().abs().max()) < 1e4 if rows.numel() else True
    if safe and given.get("similarity") is None and given.get("ref_emb") is None and not value.losses.isfinite().all():
        return f"not finite: {value.losses.tolist()}"
    return None


def of_distillation(value: Any, given: dict[str, Any]) -> str | None:
    """Check as `of_rank_loss` does; rows that are not normalised, or infinite past rows, may give infinity."""
    bounded = bool(given["past_embeddings"].isfinite().all()) and given.get("normalize", True)
    return of_rank_loss(value, given | {"similarity": None if bounded else "past rows that are not finite"})


def of_view_loss(value: Any, given: dict[str, Any]) -> str | None:
    points = given["points"]
    wide = torch.promote_types(points.dtype, torch.float32)
    if value.losses.shape != points.shape[:1] or value.losses.dtype != wide or value.valid.dtype != torch.bool:
        return f"{value.losses.dtype} {tuple(value.losses.shape)} of points {tuple(points.shape)}"
    held = [each for each in given.values() if isinstance(each, torch.Tensor) and each.numel()]
    if all(float(each.double().abs().max()) < 1e4 for each in held) and not value.losses.isfinite().all():
        return f"not finite: {value.losses.tolist()}"
    return None


def of_points(value: Any, given: dict[str, Any]) -> str | None:
    good = isinstance(value, torch.Tensor) and value.shape[-2:] == given["points"].shape[-2:]
    return None if good else f"no points: {value!r}"


def of_pixel_losses(value: Any, given: dict[str, Any]) -> str | None:
    features, wide = given["features"], torch.promote_types(given["features"].dtype, torch.float32)
    if value.losses.shape != given["masks"].shape or value.losses.dtype != wide or value.valid.dtype != torch.bool:
        return f"{value.losses.dtype} {tuple(value.losses.shape)} for masks {tuple(given['masks'].shape)}"
    safe = not features.numel() or (bool(features.isfinite().all()) and float(features.detach().abs().max()) < 1e4)
    wrong = safe and not (value.losses.isfinite() & (value.losses > -1e-5)).all()
    return f"not finite and >= 0: {value.losses.tolist()}" if wrong else None


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


def of_mixed(value: Any, given: dict[str, Any]) -> str | None:
    images, soft = value
    good = images.shape == given["images"].shape and soft.is_floating_point() and len(soft) == len(images)
    return None if good else f"{tuple(images.shape)} and {soft.dtype} {tuple(soft.shape)}"


def of_changed(value: Any, given: dict[str, Any]) -> str | None:
    good = value.dtype == torch.uint8 and value.shape == given["images"].shape
    return None if good else f"{value.dtype} {tuple(value.shape)}"


Check = Callable[[Any, dict[str, Any]], str | None]
RIGHT: dict[str, Check] = {
    "functional.supcon_loss": of_loss,
    "functional.group_supcon_loss": of_loss,
    **{f"losses.{name}": of_scalar_loss for name in ("SupConLossOut", "SupConLossIn", "GlobalBatchLoss", "QueueLoss")},
    **{f"losses.{name}": of_scalar_loss for name in ("CrossBatchMemory", "SelfSupervisedLoss")},
    **{f"losses.{name}": of_scalar_loss for name in ("CrossModalLoss", "RankNContrastLoss", "RelationDistillation")},
    "losses.NearestNeighbourLoss": of_scalar_loss,
    "losses.ViewConsistencyLoss": of_scalar_loss,
    "functional.rank_n_contrast_loss": of_rank_loss,
    "functional.relation_distillation_loss": of_distillation,
    "functional.view_consistency_loss": of_view_loss,
    "views.map_points": of_points,
    **{f"losses.{name}": of_scalar_loss for name in ("PixelSupConLoss", "MaskPrototypeLoss")},
    "functional.mask_prototype_loss": of_pixel_losses,
    **{f"miners.{name}": of_miner for name in ("OnlineHardExampleMiner", "CappedPositivesMiner", "MeasuredMiner")},
    **{f"views.{name}": of_changed for name in ("Grey", "Rotation", "Sobel", "GaussianNoise")},
    **{f"targets.{name}": finite for name in ("LabelSets", "SoftLabels", "Hierarchy", "Kernel")},
    "views.ImageTransform": of_images,
    "views.BatchMix": of_mixed,
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
            *("label_sets_probe_metrics", "level_probe_metrics", "shot_accuracies"),
            *("class_il_accuracies", "task_il_accuracies", "average_accuracy", "average_incremental_accuracy"),
        )
    },
    "search.index_recall": unit,
}
