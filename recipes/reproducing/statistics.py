"""How sure a difference is that was seen with a few seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import t

CONFIDENCE = 0.95
DIGITS = 6
ABOUT = 0.01  # of what counts as about equal: a point
WIDE = 0.02  # the interval has to be inside
Verdict = Literal["held", "held, within noise", "equal", "reversed, within noise", "reversed", "not told apart"]


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


def judge(difference: Interval, *, equal: bool = False) -> Verdict:
    """Whether an ordering held.

    Args:
        difference: by how much what the paper has ahead is ahead here.
        equal: the paper has both about equal: the mean has to be within a point, the interval within two.

    Examples:
        >>> judge(Interval(0.02, 0.01, 0.03)), judge(Interval(-0.02, -0.05, 0.01))
        ('held', 'reversed, within noise')
    """
    low, high = difference.low, difference.high
    if equal:
        if abs(difference.mean) <= ABOUT:
            sure = low is not None and high is not None and max(abs(low), abs(high)) <= WIDE
            return "held" if sure else "held, within noise"
        apart = low is not None and high is not None and (low > 0 or high < 0)
        return "reversed" if apart else "not told apart"
    if difference.mean == 0:
        return "equal"
    if difference.mean > 0:
        return "held" if low is not None and low > 0 else "held, within noise"
    return "reversed" if high is not None and high < 0 else "reversed, within noise"
