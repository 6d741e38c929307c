"""Confidence intervals of differences over few seeds, and verdicts on the paper's orderings."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pml_supcon.metrics.intervals import mean_interval

DIGITS = 6  # scores are rounded to this many decimals
POINTS, QUARTER = 0.02, 0.25  # equivalence margin: two points, at most a quarter of the error
Verdict = Literal["held", "not told apart", "reversed"]


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; the ends are None for a single value."""

    mean: float
    low: float | None
    high: float | None


def interval_of(values: Sequence[float]) -> Interval:
    """Compute Student's 95% interval of a mean; for paired differences it is the interval of the paired t-test.

    Values are rounded to 6 decimals first, because equal accuracies differ in float32's last digits.

    Examples:
        >>> interval_of([0.01, 0.02, 0.03])
        Interval(mean=0.02, low=-0.004841, high=0.044841)
    """
    rounded = [round(value, DIGITS) for value in values]
    mean = round(statistics.mean(rounded), DIGITS)
    if len(rounded) < 2:
        return Interval(mean, None, None)
    low, high = mean_interval(rounded)
    return Interval(mean, round(low, DIGITS), round(high, DIGITS))


def judge(difference: Interval, *, equal_within: float | None = None) -> Verdict:
    """Return the verdict on an ordering from the whole interval, not from the mean.

    Args:
        difference: The score of the side that the paper has ahead, minus the other side's. Without an interval, or with
            the same nonzero difference for all seeds (one test image can cause it), the verdict is "not told apart".
        equal_within: The equivalence margin (see ``margin_of``) if the paper finds both sides about equal.

    Examples:
        >>> judge(Interval(0.02, 0.01, 0.03)), judge(Interval(-0.02, -0.05, 0.01))
        ('held', 'not told apart')
    """
    low, high = difference.low, difference.high
    if low is None or high is None or (low == high != 0):
        return "not told apart"
    if equal_within is not None and max(abs(low), abs(high)) <= equal_within:
        return "held"
    if equal_within is not None:
        return "reversed" if low > equal_within or high < -equal_within else "not told apart"
    return "held" if low > 0 else "reversed" if high < 0 else "not told apart"


def margin_of(values: Sequence[float], *, lower: bool) -> float:
    """Return the equivalence margin, min(0.02, mean error / 4).

    Args:
        values: Both sides' values over all seeds: accuracies, or errors if ``lower``.
        lower: Smaller values are better.

    Examples:
        >>> margin_of([0.98, 0.97], lower=False)
        0.00625
    """
    mean = statistics.mean(values)
    return round(min(POINTS, QUARTER * (mean if lower else 1 - mean)), DIGITS)
