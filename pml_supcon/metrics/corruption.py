"""Scores on corrupted images: accuracy and calibration by severity, and mean corruption errors."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
from sklearn.pipeline import Pipeline

from pml_supcon._arrays import Array, as_embeddings, as_labels
from pml_supcon._checks import check_fraction, check_int, check_type, shown
from pml_supcon.corruptions import CORRUPTIONS
from pml_supcon.corruptions.corruption import SEVERITIES
from pml_supcon.metrics.calibration import BINS, expected_calibration_error
from pml_supcon.metrics.logistic import check_probe, finite_features

Errors: TypeAlias = Mapping[str, Sequence[float]]


class Scores(TypedDict):
    """The accuracy and expected calibration error of one set of predictions."""

    accuracy: float
    ece: float


def probe_scores(probe: Pipeline, features: Array, labels: Array, *, bins: int = BINS) -> Scores:
    """Compute the accuracy and the calibration of a fitted probe on features.

    Args:
        probe: A probe of `fit_linear_probe`, or another classifier with ``predict_proba`` and ``classes_``.
        features: ``(N, D)`` floats.
        labels: ``(N,)`` integers. A label that the probe was not fitted on counts as an error.
        bins: Number of bins of confidence, at least 1.

    Returns:
        ``accuracy`` and ``ece``, in [0, 1].

    Raises:
        TypeError: If features are not floating point, or labels or ``bins`` not integers.
        ValueError: If a shape or an option is wrong, or a feature is not finite.

    Examples:
        >>> from pml_supcon.metrics import fit_linear_probe
        >>> rows, labels = np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.array([3, 3, 7, 7])
        >>> probe_scores(fit_linear_probe(rows, labels), rows, np.array([3, 7, 7, 7]))["accuracy"]
        0.75
    """
    matrix = as_embeddings(features, "features")
    wanted = as_labels(labels, "labels", len(matrix))
    check_probe(probe, matrix, "predict_proba")
    with finite_features():
        probabilities = probe.predict_proba(matrix)
    columns = np.searchsorted(probe.classes_, wanted).clip(max=len(probe.classes_) - 1)
    unseen = probe.classes_[columns] != wanted
    if unseen.any():  # a class of probability 0, which is never the prediction
        columns = np.where(unseen, probabilities.shape[1], columns)
        probabilities = np.pad(probabilities, ((0, 0), (0, 1)))
    return Scores(
        accuracy=float((probabilities.argmax(axis=1) == columns).mean()),
        ece=expected_calibration_error(probabilities, columns, bins=bins),
    )


def scores_by_severity(scores: Mapping[tuple[str, int], Scores]) -> dict[int, Scores]:
    """Average accuracy and calibration error over the corruptions, for each severity.

    Args:
        scores: The scores of every pair (corruption, severity): a full grid of any corruptions and severities.

    Returns:
        ``{severity: {"accuracy", "ece"}}`` in ascending order, all in [0, 1].

    Raises:
        ValueError: If the grid is empty or lacks a pair, which the error names.

    Examples:
        >>> cells = {("fog", 1): Scores(accuracy=0.75, ece=0.5), ("snow", 1): Scores(accuracy=0.25, ece=0.5)}
        >>> scores_by_severity(cells)
        {1: {'accuracy': 0.5, 'ece': 0.5}}
    """
    check_type("scores", scores, Mapping, "a mapping")
    for key, cell in scores.items():
        if not isinstance(key, tuple) or len(key) != 2:
            raise TypeError(f"Expected argument `scores` to have keys (corruption, severity), but got {shown(key)}")
        check_int("scores", key[1], low=0)
        if not isinstance(cell, Mapping) or not {"accuracy", "ece"} <= set(cell):
            raise TypeError(f"Expected argument `scores` to hold accuracy and ece, but got {shown(cell)} for {key}")
        check_fraction("scores", cell["accuracy"], zero=True, one=True)
        check_fraction("scores", cell["ece"], zero=True, one=True)
    if not scores:
        raise ValueError("Expected argument `scores` to hold at least one (corruption, severity), but got none")
    names = list(dict.fromkeys(name for name, _ in scores))
    severities = sorted({severity for _, severity in scores})
    missing = [f"{name} at {severity}" for name in names for severity in severities if (name, severity) not in scores]
    if missing:
        holes = ", ".join(missing)
        raise ValueError(
            f"Expected argument `scores` to hold every severity of every corruption, but got none for {holes}"
        )
    return {
        severity: Scores(
            accuracy=float(np.mean([scores[name, severity]["accuracy"] for name in names])),
            ece=float(np.mean([scores[name, severity]["ece"] for name in names])),
        )
        for severity in severities
    }


def corruption_metrics(scores: Mapping[tuple[str, int], Scores]) -> dict[str, float]:
    """Flatten a full grid of corruptions and severities into named metrics.

    Args:
        scores: A full grid, as in `scores_by_severity`, which raises the same errors.

    Returns:
        ``accuracy_fog_3`` and ``ece_fog_3`` of each pair, ``accuracy_severity_3`` and ``ece_severity_3`` of each
        severity, and ``mean_error``, the mean over all pairs of 1 - accuracy; all in [0, 1].

    Examples:
        >>> corruption_metrics({("fog", 3): Scores(accuracy=0.75, ece=0.125)})["mean_error"]
        0.25
    """
    by_severity = scores_by_severity(scores)
    metrics: dict[str, float] = {}
    for (name, severity), cell in scores.items():
        metrics |= {f"accuracy_{name}_{severity}": cell["accuracy"], f"ece_{name}_{severity}": cell["ece"]}
    for severity, mean in by_severity.items():
        metrics |= {f"accuracy_severity_{severity}": mean["accuracy"], f"ece_severity_{severity}": mean["ece"]}
    return metrics | {"mean_error": float(np.mean([1 - mean["accuracy"] for mean in by_severity.values()]))}


def corruption_errors(scores: Mapping[tuple[str, int], Scores]) -> dict[str, list[float]]:
    """Return the errors of each corruption in the order of severity, for `mean_corruption_error`.

    Args:
        scores: A full grid, as in `scores_by_severity`, which raises the same errors.

    Returns:
        ``{name: [1 - accuracy, ...]}``.

    Examples:
        >>> corruption_errors({("fog", s): Scores(accuracy=1 - s / 8, ece=0.0) for s in (2, 1)})
        {'fog': [0.125, 0.25]}
    """
    severities = list(scores_by_severity(scores))
    names = dict.fromkeys(name for name, _ in scores)
    return {name: [1 - scores[name, severity]["accuracy"] for severity in severities] for name in names}


def mean_corruption_error(errors: Errors, baseline: Errors) -> float:
    r"""Compute the errors under corruption relative to a baseline (mCE).

    With :math:`E_{s,c}` the error at severity s of corruption c, and :math:`B_{s,c}` the baseline's,

    .. math:: \mathrm{mCE} = \frac{1}{15} \sum_c \frac{\sum_{s=1}^{5} E_{s,c}}{\sum_{s=1}^{5} B_{s,c}}.

    Hendrycks & Dietterich (ICLR 2019), section 3, with AlexNet as the baseline on ImageNet-C; they print 100 times it.

    Args:
        errors: For each of the 15 `CORRUPTIONS` the errors at severities 1 to 5, in [0, 1].
        baseline: The errors of the baseline, in the same form.

    Returns:
        At least 0; 1 for the baseline itself, smaller is better.

    Raises:
        TypeError: If an argument is not a mapping, or an error is not a number.
        ValueError: If a corruption is missing or unknown or does not have five errors in [0, 1], or the baseline has
            no error under a corruption, which the error names.

    Examples:
        >>> baseline = {name: [0.2, 0.4, 0.5, 0.6, 0.8] for name in CORRUPTIONS}
        >>> mean_corruption_error({name: [0.25] * 5 for name in CORRUPTIONS}, baseline)
        0.5
    """
    return _mean_ratio(_error_sums(errors, "errors"), _error_sums(baseline, "baseline"), "no error")


def relative_mean_corruption_error(
    errors: Errors, baseline: Errors, *, clean_error: float, baseline_clean_error: float
) -> float:
    r"""Compute the rise of the error under corruption relative to a baseline (relative mCE).

    .. math:: \frac{1}{15} \sum_c \frac{\sum_{s=1}^{5} (E_{s,c} - E_\text{clean})}
        {\sum_{s=1}^{5} (B_{s,c} - B_\text{clean})}.

    Hendrycks & Dietterich (ICLR 2019), section 3.

    Args:
        errors: The errors under corruption, as in `mean_corruption_error`.
        baseline: The errors of the baseline, as in `mean_corruption_error`.
        clean_error: The error on clean images, in [0, 1].
        baseline_clean_error: The error of the baseline on clean images, in [0, 1].

    Returns:
        1 for the baseline itself; 0 where corruption adds no error; negative where errors fall under corruption.

    Raises:
        TypeError: As `mean_corruption_error`.
        ValueError: As `mean_corruption_error`, or if the baseline's error does not rise under a corruption, which the
            error names.

    Examples:
        >>> baseline = {name: [0.5] * 5 for name in CORRUPTIONS}
        >>> errors = {name: [0.25] * 5 for name in CORRUPTIONS}
        >>> relative_mean_corruption_error(errors, baseline, clean_error=0.125, baseline_clean_error=0.25)
        0.5
    """
    check_fraction("clean_error", clean_error, zero=True, one=True)
    check_fraction("baseline_clean_error", baseline_clean_error, zero=True, one=True)
    rise = _error_sums(errors, "errors") - len(SEVERITIES) * clean_error
    return _mean_ratio(rise, _error_sums(baseline, "baseline") - len(SEVERITIES) * baseline_clean_error, "no rise")


def _mean_ratio(sums: npt.NDArray[np.float64], baseline: npt.NDArray[np.float64], nothing: str) -> float:
    # A difference of five equal errors is 0 up to rounding.
    low = [name for name, value in zip(CORRUPTIONS, baseline, strict=True) if value <= 1e-12]
    if low:
        raise ValueError(
            f"Expected argument `baseline` to be above 0 for every corruption, but got {nothing} under {', '.join(low)}"
        )
    return float((sums / baseline).mean())


def _error_sums(errors: Errors, name: str) -> npt.NDArray[np.float64]:
    """Check the errors and return their sum over severities for each of `CORRUPTIONS`, (15,)."""
    check_type(name, errors, Mapping, "a mapping")
    missing = [corruption for corruption in CORRUPTIONS if corruption not in errors]
    unknown = [str(corruption) for corruption in errors if corruption not in CORRUPTIONS]
    if missing or unknown:
        raise ValueError(
            f"Expected argument `{name}` to have the {len(CORRUPTIONS)} corruptions as keys, but got missing ones: "
            f"{', '.join(missing) or 'none'}; unknown ones: {', '.join(unknown) or 'none'}"
        )
    for corruption in CORRUPTIONS:
        check_type(f"{name}[{corruption!r}]", errors[corruption], (Sequence, np.ndarray), "a sequence of errors")
        if len(errors[corruption]) != len(SEVERITIES):
            raise ValueError(
                f"Expected argument `{name}` to have an error for each of severities 1 to 5, but got "
                f"{len(errors[corruption])} under {corruption}"
            )
        for error in errors[corruption]:
            check_fraction(name, error, zero=True, one=True)
    return np.array([sum(errors[corruption]) for corruption in CORRUPTIONS], dtype=np.float64)
