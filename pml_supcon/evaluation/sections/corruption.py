"""The section "corruption": the accuracy and the calibration of a linear probe on corrupted test images."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax

from pml_supcon._files import check_file
from pml_supcon.corruptions import CORRUPTIONS, Corruption, strengths_for
from pml_supcon.corruptions.corruption import SEVERITIES
from pml_supcon.evaluation.context import EvaluationContext, note_missing_classes, warnings_as_notes
from pml_supcon.metrics import fit_linear_probe
from pml_supcon.metrics.corruption import (
    Errors,
    Scores,
    corruption_errors,
    mean_corruption_error,
    probe_scores,
    scores_by_severity,
)

SEED = 0  # of the corruptions, not the run's seed: all evaluations use the same images, as with a benchmark on disk


class SeverityScores(TypedDict):
    """The accuracy and the expected calibration error at a severity."""

    severity: int
    accuracy: float
    ece: float


@dataclass(frozen=True, kw_only=True)
class CorruptionSection:
    """The results of the section "corruption".

    Attributes:
        strengths: The image size that the strengths of the corruptions are defined for: "32" or "224".
        images: The number of test images.
        clean: The scores on the clean images.
        corruptions: The scores by corruption, one entry for each severity.
        by_severity: The mean over the corruptions.
        mean_error: The mean of 1 - accuracy over corruptions and severities.
        mean_corruption_error: The mCE relative to the baseline, or None without one.
        baseline: The path of the baseline, or None.
    """

    strengths: str
    images: int
    clean: Scores
    corruptions: dict[str, list[SeverityScores]]
    by_severity: list[SeverityScores]
    mean_error: float
    mean_corruption_error: float | None = None
    baseline: str | None = None


def corruption(context: EvaluationContext) -> CorruptionSection | None:
    """Fit a linear probe on clean training images, and score it on test images under each corruption and severity.

    The settings `corruptions` (default: all 15), `severities`, `corruption_images` (at most this many test images) and
    `inverse_l2` (default: chosen on held-out training images) apply. `corruption_baseline` is the `evaluation.json`
    that the mean corruption error is relative to. With `own_classifier` the classifier of the run replaces the probe.

    Returns:
        The section; None on all processes but the main one.

    Raises:
        ValueError: If the baseline is of other images or corruptions, or has no error under one of the corruptions.
        OSError: If the baseline cannot be read.
    """
    settings = context.settings
    names, severities = _requested(context)
    strengths = strengths_for(context.data.image_size, context.data.image_size)
    most = settings.corruption_images
    labels, baseline = context.labels("test", most=most), baseline_of(context)
    train, test = context.features("train"), context.features("test", most=most)
    probe: Any = None
    if context.is_main and settings.own_classifier and context.loaded.classifier is not None:
        probe = TrainedClassifier(context.loaded.classifier)
    elif context.is_main:
        train_labels = context.labels("train")
        note_missing_classes(context, train_labels, labels, "under corruption they count as errors")
        with warnings_as_notes(context, "Corruption"):
            probe = fit_linear_probe(train, train_labels, inverse_l2=settings.inverse_l2 or "auto", seed=settings.seed)
    # all processes compute features (N, width) of the corrupted images; the main one scores them
    cells: dict[tuple[str, int], Scores] = {}
    for name in names:
        for severity in severities:
            change = Corruption(name, severity, strengths=strengths, seed=SEED)
            features = context.features("test", change=change, most=most)
            if probe is not None:
                cells[name, severity] = probe_scores(probe, features, labels, bins=settings.bins)
    if probe is None:
        return None
    by_severity = scores_by_severity(cells)
    return CorruptionSection(
        strengths=strengths,
        images=len(labels),
        clean=probe_scores(probe, test, labels, bins=settings.bins),
        corruptions={name: [{"severity": level, **cells[name, level]} for level in severities] for name in names},
        by_severity=[{"severity": level, **scores} for level, scores in by_severity.items()],
        mean_error=sum(1 - scores["accuracy"] for scores in by_severity.values()) / len(by_severity),
        mean_corruption_error=None if baseline is None else mean_corruption_error(corruption_errors(cells), baseline),
        baseline=None if baseline is None else str(settings.corruption_baseline),
    )


class TrainedClassifier:
    """A run's linear classifier with the interface of a probe, for the labels 0..C-1.

    Args:
        weights: ``weight`` ``(C, width)`` and ``bias`` ``(C,)``.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.weight, self.bias = (weights[name].double().numpy() for name in ("weight", "bias"))
        self.classes_ = np.arange(len(self.weight))

    def predict_proba(self, rows: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Return the probabilities ``(N, C)`` of features ``(N, width)``."""
        probabilities: npt.NDArray[np.float64] = softmax(rows @ self.weight.T + self.bias, axis=1)
        return probabilities


def baseline_of(context: EvaluationContext) -> Errors | None:
    """Read the `corruption_baseline` of the settings, if there is one; it must fit the data and the settings.

    Raises:
        ValueError: If not all corruptions are requested, or the baseline is unsuitable; see `read_baseline`.
        OSError: If it cannot be read.
    """
    path, data = context.settings.corruption_baseline, context.data
    if path is None:
        return None
    names, severities = _requested(context)
    missing = [name for name in CORRUPTIONS if name not in names]
    missing += [f"severity {level}" for level in SEVERITIES if level not in severities]
    if missing:
        raise ValueError(
            "Expected --corruptions and --severities to be all, because --corruption_baseline is given, but got none "
            f"of: {', '.join(missing)}"
        )
    own = {"spec": data.spec, "test": len(data.test), "image_size": data.image_size, "in_chans": data.in_chans}
    images = len(context.labels("test", most=context.settings.corruption_images))
    return read_baseline(path, data=own, strengths=strengths_for(data.image_size, data.image_size), images=images)


def read_baseline(path: Path, *, data: Mapping[str, Any], strengths: str, images: int) -> Errors:
    """Read the errors of another evaluation under the 15 corruptions, in the form that `mean_corruption_error` takes.

    Its data, strengths and number of corrupted test images must equal the given ones.

    Raises:
        ValueError: If it is not an evaluation, lacks some of the corruptions or severities, has other strengths or
            data, or no error under a corruption.
        OSError: If it cannot be read.
    """
    expected = 'Expected --corruption_baseline to be an evaluation.json with a section "corruption", but'
    try:
        check_file(path)
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        section, its_data = report["sections"]["corruption"], report["data"]
        cells = {
            (name, cell["severity"]): Scores(accuracy=cell["accuracy"], ece=cell["ece"])
            for name, row in section["corruptions"].items()
            for cell in row
        }
        its = {name: its_data.get(name) for name in data} | {name: section[name] for name in ("strengths", "images")}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{expected} {path} cannot be read: {type(error).__name__}: {error}") from error
    for name, value in {**data, "strengths": strengths, "images": images}.items():
        if its[name] != value:
            raise ValueError(f"{expected} {path} has {name} {its[name]!r}, and this evaluation has {value!r}")
    try:
        errors = corruption_errors(cells)
        mean_corruption_error(errors, errors)
    except ValueError as error:
        raise ValueError(f"{expected} the section in {path} cannot be the baseline: {error}") from error
    return errors


def _requested(context: EvaluationContext) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the corruptions and the severities of the settings, each once."""
    settings = context.settings
    return tuple(dict.fromkeys(settings.corruptions)) or CORRUPTIONS, tuple(sorted(set(settings.severities)))
