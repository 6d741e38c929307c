"""The section "corruption": a linear probe on corrupted test images."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax

from pml_supcon.corruptions import CORRUPTIONS, Corruption, strengths_for
from pml_supcon.corruptions.corruption import SEVERITIES
from pml_supcon.evaluation.context import EvaluationContext
from pml_supcon.evaluation.notes import note_missing_classes, warnings_as_notes
from pml_supcon.metrics import fit_linear_probe
from pml_supcon.metrics.corruption import (
    Errors,
    Scores,
    corruption_errors,
    mean_corruption_error,
    probe_scores,
    scores_by_severity,
)

SEED = 0  # of the corruptions, whatever the run's: all evaluations see the same images, as of a benchmark on disk


def corruption(context: EvaluationContext) -> dict[str, Any] | None:
    """Score a probe, fitted on clean train images, on the test images under every corruption and severity.

    Args:
        context: what is evaluated. `settings.corruptions` (none: all 15) and `settings.severities` say under what,
            `settings.corruption_baseline` names the `evaluation.json` whose errors the mean corruption error is
            measured by; `settings.corruption_images` caps the test images, `settings.inverse_l2` is the probe's (none:
            chosen on a held-out part of train).

    Returns:
        The section; None on other processes than the main one.

    Raises:
        ValueError: the baseline is not one for these images and corruptions, or makes no error under one of them.
        OSError: the baseline's file cannot be read.
    """
    settings = context.settings
    names = tuple(dict.fromkeys(settings.corruptions)) or CORRUPTIONS
    severities = tuple(sorted(set(settings.severities)))
    strengths = strengths_for(context.data.image_size, context.data.image_size)
    changes = [Corruption(name, level, strengths=strengths, seed=SEED) for name in names for level in severities]
    most, path = settings.corruption_images, settings.corruption_baseline
    labels = context.labels("test", most=most)
    baseline = None
    if path is not None:  # refused before the encoder runs 75 times
        _check_complete(names, severities)
        baseline = read_baseline(path, data=_identity(context), strengths=strengths, images=len(labels))

    train, test = context.features("train"), context.features("test", most=most)
    probe: Any = None
    if context.is_main and settings.own_classifier and context.loaded.classifier is not None:
        probe = TrainedClassifier(context.loaded.classifier)
    elif context.is_main:
        learnt = context.labels("train")
        note_missing_classes(context, learnt, labels, "under corruption they count as errors")
        penalty: float | Literal["auto"] = settings.inverse_l2 if settings.inverse_l2 is not None else "auto"
        with warnings_as_notes(context, "Corruption"):
            probe = fit_linear_probe(train, learnt, inverse_l2=penalty, seed=settings.seed)
    cells: dict[tuple[str, int], Scores] = {}
    for change in changes:
        features = context.features("test", change=change, most=most)
        if probe is not None:
            cells[change.name, change.severity] = probe_scores(probe, features, labels, bins=settings.bins)
    if probe is None:
        return None
    by_severity = scores_by_severity(cells)
    errors = corruption_errors(cells)
    return {
        "strengths": strengths,
        "images": len(labels),
        "clean": {**probe_scores(probe, test, labels, bins=settings.bins)},
        "corruptions": {name: [{"severity": level, **cells[name, level]} for level in severities] for name in names},
        "by_severity": [{"severity": level, **scores} for level, scores in by_severity.items()],
        "mean_error": sum(1 - scores["accuracy"] for scores in by_severity.values()) / len(by_severity),
        "mean_corruption_error": None if baseline is None else mean_corruption_error(errors, baseline),
        "baseline": None if path is None else str(path),
    }


class TrainedClassifier:
    """A run's linear classifier in the place of a probe: `weight` `(C, width)`, `bias` `(C,)`, of the labels 0..C-1."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.weight, self.bias = (weights[name].double().numpy() for name in ("weight", "bias"))
        self.classes_ = np.arange(len(self.weight))

    def predict_proba(self, rows: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Probabilities `(N, C)` of features `(N, width)`."""
        found: npt.NDArray[np.float64] = softmax(rows @ self.weight.T + self.bias, axis=1)
        return found


def read_baseline(path: Path, *, data: dict[str, Any], strengths: str, images: int) -> Errors:
    """The errors of another evaluation under the 15 corruptions.

    Args:
        path: its `evaluation.json`.
        data: what has to be equal in its "data".
        strengths: "32" or "224", which have to be its own.
        images: how many test images are corrupted, which has to be its own number.

    Returns:
        What `mean_corruption_error` takes.

    Raises:
        ValueError: it is no evaluation, has no section "corruption" or an incomplete one, has other strengths or data,
            or no error under a corruption.
        OSError: it cannot be read.
    """
    wanted = (
        f'Expected argument `corruption_baseline` to be an evaluation.json with a section "corruption", but got {path}'
    )
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        section, its_data = report["sections"]["corruption"], report["data"]
        cells = {
            (name, cell["severity"]): Scores(accuracy=cell["accuracy"], ece=cell["ece"])
            for name, row in section["corruptions"].items()
            for cell in row
        }
        found = {name: its_data.get(name) for name in data} | {name: section[name] for name in ("strengths", "images")}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{wanted}, which has none that can be read ({type(error).__name__}: {error}).") from error
    for name, value in {**data, "strengths": strengths, "images": images}.items():
        if found[name] != value:
            raise ValueError(f"{wanted}, which has {name} {found[name]!r}; here it is {value!r}.")
    try:
        errors = corruption_errors(cells)
        mean_corruption_error(errors, errors)
    except ValueError as error:
        raise ValueError(f"{wanted}, which will not do: {error}") from error
    return errors


def _identity(context: EvaluationContext) -> dict[str, Any]:
    data = context.data
    return {"spec": data.spec, "test": len(data.test), "image_size": data.image_size, "in_chans": data.in_chans}


def _check_complete(names: tuple[str, ...], severities: tuple[int, ...]) -> None:
    missing = [name for name in CORRUPTIONS if name not in names]
    lacking = [str(level) for level in SEVERITIES if level not in severities]
    if missing or lacking:
        raise ValueError(
            "Expected arguments `corruptions` and `severities` to be all, since `corruption_baseline` is given, but "
            f"got none of: {', '.join([*missing, *(f'severity {level}' for level in lacking)])}."
        )
