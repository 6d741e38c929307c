"""How sure a difference is that was seen with a few seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import t

CONFIDENCE = 0.95
DIGITS = 6
POINTS, QUARTER = 0.02, 0.25  # what counts as about equal: two points, but no more than a quarter of the error
Verdict = Literal["held", "not told apart", "reversed"]


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; without an interval (None) for a single value."""

    mean: float
    low: float | None
    high: float | None


def interval_of(values: Sequence[float]) -> Interval:
    """Student's interval of a mean, 95 %; of paired differences it is the paired one.

    Values are rounded to 6 digits first: accuracies that are equal differ in float32's last digits.

    Examples:
        >>> interval_of([0.01, 0.02, 0.03])
        Interval(mean=0.02, low=-0.004841, high=0.044841)
    """
    rounded = [round(value, DIGITS) for value in values]
    mean = statistics.mean(rounded)
    if len(rounded) < 2:
        return Interval(round(mean, DIGITS), None, None)
    half = statistics.stdev(rounded) / math.sqrt(len(rounded)) * float(t.ppf((1 + CONFIDENCE) / 2, len(rounded) - 1))
    return Interval(*(round(value, DIGITS) for value in (mean, mean - half, mean + half)))


def judge(difference: Interval, *, equal_within: float | None = None) -> Verdict:
    """Whether an ordering held: the whole interval has to say so.

    Args:
        difference: by how much what the paper has ahead is ahead here. One without an interval, or whose seeds all gave
            the same, which a few test images do, says nothing for sure.
        equal_within: the paper has both about equal: the interval has to be within so much of 0; see `margin_of`.

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
    """What counts as about equal: two points, but no more than a quarter of the error that there is.

    Args:
        values: both sides of all seeds: accuracies, or errors where `lower` is better.
        lower: they are errors.

    Examples:
        >>> margin_of([0.98, 0.97], lower=False)
        0.00625
    """
    mean = statistics.mean(values)
    return round(min(POINTS, QUARTER * (mean if lower else 1 - mean)), DIGITS)
