"""The temperature of a classifier's logits, fitted to rows that it was not trained on."""

import logging
import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax

from ._class_scores import as_logits
from ._inputs import Array

logger = logging.getLogger(__name__)

LOWEST, HIGHEST = BOUNDS = 0.01, 100.0


def fit_temperature(logits: Array, labels: Array) -> float:
    r"""Choose T, in [0.01, 100], such that :math:`\mathrm{softmax}(z / T)` has the least negative log-likelihood.

    It is convex in :math:`\beta = 1 / T`; where its derivative, the mean over rows of
    :math:`\sum_c p_c z_c - z_y`, is 0, lies the optimum (Guo et al., ICML 2017, section 4.2, temperature scaling).

    Args:
        logits: ``(N, C)`` finite floats, at least two columns, of rows that the classifier was not trained on. Computed
            in float64.
        labels: ``(N,)`` integers, the right columns, from 0 to C - 1.

    Returns:
        The temperature. Where the optimum lies beyond a bound, the bound, and a warning is logged: 0.01 where every
        row is right (nearly so: the optimum is T = 0), 100 where the logits tell nothing of the labels.

    Raises:
        TypeError: If logits are not floating point, or labels not integers.
        ValueError: If a shape is wrong, a logit is not finite, or a label is no column.

    Example:
        >>> logits = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
        >>> T = fit_temperature(logits, np.array([0, 0, 0, 1]))
        >>> round(T, 4), round(float(softmax([2.0 / T, 0.0])[0]), 4)
        (1.8205, 0.75)
    """
    rows, wanted = as_logits(logits, labels)
    above = rows - rows[np.arange(len(rows)), wanted][:, None]  # of the right column's: a right row has none above 0

    def slope(log_beta: float) -> float:
        """Derivative of the negative log-likelihood in beta, which rises with it."""
        return float((softmax(math.exp(log_beta) * above, axis=1) * above).sum(axis=1).mean())

    low, high = -math.log(HIGHEST), -math.log(LOWEST)
    if slope(high) <= 0:
        logger.warning(
            "The best temperature is %g or below, and that is taken: of %d held-out rows %d are right. "
            "More held-out rows would bound it.",
            LOWEST,
            len(rows),
            int((above.argmax(axis=1) == wanted).sum()),
        )
        return LOWEST
    if slope(low) >= 0:
        logger.warning(
            "The best temperature is %g or above, and that is taken: the logits tell nothing of the labels, or are "
            "very large.",
            HIGHEST,
        )
        return HIGHEST
    return math.exp(-brentq(slope, low, high))
