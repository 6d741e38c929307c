"""Calibration errors of a classifier: the distance between its confidence and its accuracy."""

from typing import TypedDict

import numpy as np
from scipy.special import log_softmax, softmax

from pml_supcon._arrays import Array, Floats, Labels
from pml_supcon._checks import check_int, check_number
from pml_supcon.metrics._class_scores import as_logits, as_probabilities, bin_sums, top_bins

BINS = 15


class ReliabilityBin(TypedDict):
    """The rows with confidence in (``low``, ``high``]; the means are None where there are no rows."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def expected_calibration_error(probabilities: Array, labels: Array, *, bins: int = BINS) -> float:
    r"""Compute the mean distance between confidence and accuracy (ECE).

    With :math:`B_m` the rows whose confidence, the largest probability, is in :math:`(\frac{m-1}{M}, \frac{m}{M}]`,

    .. math:: \mathrm{ECE} = \sum_{m=1}^{M} \frac{|B_m|}{N} \, |\mathrm{acc}(B_m) - \mathrm{conf}(B_m)|.

    Guo et al., *On Calibration of Modern Neural Networks* (ICML 2017), equation 3. torchmetrics 1.9 computes another
    value: its bins are closed below, a confidence of exactly 1 has a bin of its own, and it sums in the dtype of the
    probabilities, which in float32 is off by 0.017 on 2,000,000 rows of one confidence.

    Args:
        probabilities: ``(N, C)`` floats in [0, 1], at least two columns, each row with sum 1. Bins are compared in
            their dtype (half precision in float32), sums taken in float64.
        labels: ``(N,)`` integers, the right columns, from 0 to C - 1.
        bins: M, at least 1.

    Returns:
        The error, in [0, 1]. Of equal probabilities the first column is the prediction.

    Raises:
        TypeError: If probabilities are not floating point, or labels or ``bins`` not integers.
        ValueError: If a shape or an option is wrong, a row does not sum to 1, or a label is not a column
            index.

    Examples:
        >>> probabilities = np.array([[0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.5]])
        >>> expected_calibration_error(probabilities, np.array([0, 1, 1, 0]))
        0.1875
    """
    rows, wanted = as_probabilities(probabilities, labels)
    check_int("bins", bins, low=1)
    counts, confidence, right = top_bins(rows, wanted, bins)
    return float(np.abs(right - confidence).sum() / counts.sum())


def classwise_calibration_error(probabilities: Array, labels: Array, *, bins: int = BINS) -> float:
    r"""Compute the mean over the classes of the calibration error of each column, over all rows (classwise ECE).

    With :math:`B_{mc}` the rows whose probability of class c is in bin m,

    .. math:: \frac{1}{C} \sum_{c=1}^{C} \sum_{m=1}^{M} \frac{|B_{mc}|}{N} \,
        |\mathrm{share\ of\ class\ } c \mathrm{\ in\ } B_{mc} - \mathrm{mean\ probability\ in\ } B_{mc}|.

    Kull et al., *Beyond temperature scaling* (NeurIPS 2019), section 3; the static calibration error of Nixon et al.
    (*Measuring Calibration in Deep Learning*, CVPR workshops 2019). With many classes most probabilities are close to
    0, and so is the error. A probability of 0 is in the first bin.

    Arguments and errors are the same as for `expected_calibration_error`.

    Returns:
        The error, in [0, 1].

    Examples:
        >>> probabilities = np.array([[0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.5]])
        >>> classwise_calibration_error(probabilities, np.array([0, 1, 1, 0]))
        0.3125
    """
    rows, wanted = as_probabilities(probabilities, labels)
    check_int("bins", bins, low=1)
    errors = []
    for column, values in enumerate(rows.T):  # one at a time, for the memory
        _, expected, found = bin_sums(values, wanted == column, bins)
        errors.append(np.abs(found - expected).sum() / len(rows))
    return float(np.mean(errors))


def negative_log_likelihood(logits: Array, labels: Array) -> float:
    r"""Compute the mean over the rows of :math:`-\log \mathrm{softmax}(z)_y`, in nats.

    scikit-learn's ``log_loss`` takes probabilities and clips them: a confident mistake would cost at most 36.

    Args:
        logits: ``(N, C)`` finite floats, at least two columns; log-probabilities are logits too. Computed in float64.
        labels: ``(N,)`` integers, the right columns, from 0 to C - 1.

    Returns:
        The mean, at least 0.

    Raises:
        TypeError: If logits are not floating point, or labels not integers.
        ValueError: If a shape is wrong, a logit is not finite, or a label is not a column index.

    Examples:
        >>> round(negative_log_likelihood(np.log([[0.25, 0.75], [0.5, 0.5]]), np.array([1, 0])), 4)
        0.4904
    """
    rows, wanted = as_logits(logits, labels)
    return float(-log_softmax(rows, axis=1)[np.arange(len(rows)), wanted].mean())


def brier_score(probabilities: Array, labels: Array) -> float:
    r"""Compute the mean squared distance of the probabilities from the label, summed over the classes.

    .. math:: \frac{1}{N} \sum_{i=1}^{N} \sum_{c=1}^{C} (p_{ic} - [y_i = c])^2

    The form of Brier (*Verification of forecasts expressed in terms of probability*, 1950). With two classes it is
    twice the score of the second column alone. scikit-learn's ``brier_score_loss`` rejects values that rounding
    has raised above 1.

    Arguments and errors are the same as for `expected_calibration_error`.

    Returns:
        The score, in [0, 2].

    Examples:
        >>> brier_score(np.array([[0.25, 0.75], [0.5, 0.5]]), np.array([1, 0]))
        0.3125
    """
    rows, wanted = as_probabilities(probabilities, labels)
    return _brier(rows, wanted)


def reliability_diagram(probabilities: Array, labels: Array, *, bins: int = BINS) -> list[ReliabilityBin]:
    """Compute confidence and accuracy of each bin of `expected_calibration_error`, as plain data.

    Arguments and errors are the same as for `expected_calibration_error`.

    Returns:
        A dictionary for each bin, in ascending order: its edges ``low`` (excluded) and ``high`` (included), the
        ``count`` of its rows, and their mean ``confidence`` and ``accuracy``, in [0, 1], or None where it has no rows.

    Examples:
        >>> probabilities = np.array([[0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.5]])
        >>> for part in reliability_diagram(probabilities, np.array([0, 1, 0, 0]), bins=2):
        ...     print(part)
        {'low': 0.0, 'high': 0.5, 'count': 1, 'confidence': 0.5, 'accuracy': 1.0}
        {'low': 0.5, 'high': 1.0, 'count': 3, 'confidence': 0.75, 'accuracy': 0.3333333333333333}
    """
    rows, wanted = as_probabilities(probabilities, labels)
    check_int("bins", bins, low=1)
    sums = zip(*(part.tolist() for part in top_bins(rows, wanted, bins)), strict=True)
    return [
        {
            "low": number / bins,
            "high": (number + 1) / bins,
            "count": int(count),
            "confidence": confidence / count if count else None,
            "accuracy": right / count if count else None,
        }
        for number, (count, confidence, right) in enumerate(sums)
    ]


def calibration_metrics(
    logits: Array, labels: Array, *, temperature: float = 1.0, bins: int = BINS
) -> dict[str, float]:
    r"""Score the probabilities :math:`\mathrm{softmax}(z / T)`.

    Args:
        logits: As for `negative_log_likelihood`.
        labels: As for `negative_log_likelihood`.
        temperature: T, above 0 and finite; see `fit_temperature`.
        bins: As for `expected_calibration_error`.

    Returns:
        ``ece`` (`expected_calibration_error`), ``classwise_ece`` (`classwise_calibration_error`), ``nll``
        (`negative_log_likelihood`) and ``brier`` (`brier_score`).

    Raises:
        TypeError: If logits are not floating point, labels or ``bins`` not integers, or the temperature not a number.
        ValueError: If a shape or an option is wrong, a logit is not finite, or a label is not a column index.

    Examples:
        >>> logits = np.log([[0.8, 0.2], [0.8, 0.2]])
        >>> found = calibration_metrics(logits, np.array([0, 1]))
        >>> {name: round(value, 3) for name, value in found.items()}
        {'ece': 0.3, 'classwise_ece': 0.3, 'nll': 0.916, 'brier': 0.68}
    """
    temperature = check_number("temperature", temperature, above=0)
    rows, wanted = as_logits(logits, labels)
    with np.errstate(over="ignore"):  # an overflow is infinity, which is rejected
        scaled = rows / temperature
    if not np.isfinite(scaled).all():
        raise ValueError(f"Expected argument `temperature` to leave the logits over it finite, but got {temperature}")
    probabilities = softmax(scaled, axis=1)
    return {
        "ece": expected_calibration_error(probabilities, wanted, bins=bins),
        "classwise_ece": classwise_calibration_error(probabilities, wanted, bins=bins),
        "nll": negative_log_likelihood(scaled, wanted),
        "brier": _brier(probabilities, wanted),
    }


def _brier(rows: Floats, wanted: Labels) -> float:
    # (p - y)^2 summed over the classes, without a matrix of y
    chosen = rows[np.arange(len(rows)), wanted].astype(np.float64)
    squares = np.square(rows, dtype=np.float64).sum(axis=1) - np.square(chosen) + np.square(1 - chosen)
    return float(squares.mean())
