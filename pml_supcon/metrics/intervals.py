"""Confidence intervals of means."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


def mean_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    r"""Compute Student's confidence interval of a mean, :math:`\bar x \pm t_{n-1} s / \sqrt n`.

    scipy's ``stats.t.interval`` gives NaN where all values are equal; here the interval is then the mean itself.

    Args:
        values: n independent values, at least 2.
        confidence: Between 0 and 1.

    Returns:
        The lower and the upper end.

    Examples:
        >>> low, high = mean_interval([0.01, 0.02, 0.03])
        >>> round(low, 6), round(high, 6)
        (-0.004841, 0.044841)
    """
    mean, reach = np.mean(values), stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values)
    return float(mean - reach), float(mean + reach)
