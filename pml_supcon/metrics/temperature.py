"""Temperature scaling of a classifier's logits."""

import logging
import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax

from pml_supcon._arrays import Array
from pml_supcon.metrics._class_scores import as_logits

logger = logging.getLogger(__name__)

LOWEST, HIGHEST = 0.01, 100.0


def fit_temperature(logits: Array, labels: Array) -> float:
    r"""Choose T, between 0.01 and 100, such that :math:`\mathrm{softmax}(z / T)` has the least negative log-likelihood.

    The likelihood is convex in :math:`\beta = 1 / T`; at the optimum its derivative, the mean over rows of
    :math:`\sum_c p_c z_c - z_y`, is 0 (Guo et al., ICML 2017, section 4.2, temperature scaling).

    Neither the classifier nor the encoder may have been trained on these rows: nearly all training images of an encoder
    are classified right, and T is then too small.

    Args:
        logits: ``(N, C)`` finite floats, at least two columns, of held-out rows. Computed in float64.
        labels: ``(N,)`` integers, the right columns, from 0 to C - 1.

    Returns:
        The temperature. It is 1, and the reason is a warning, if there is no optimum between the bounds: every
        row is right (the optimum is T = 0), all logits of each row are equal (every T has the same likelihood), the
        logits are larger for wrong columns, or they are extremely small or large.

    Raises:
        TypeError: If logits are not floating point, or labels not integers.
        ValueError: If a shape is wrong, a logit is not finite, or a label is not a column index.

    Examples:
        >>> logits = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
        >>> T = fit_temperature(logits, np.array([0, 0, 0, 1]))
        >>> round(T, 4), round(float(softmax([2.0 / T, 0.0])[0]), 4)
        (1.8205, 0.75)
    """
    rows, wanted = as_logits(logits, labels)
    above = rows - rows[np.arange(len(rows)), wanted][:, None]  # logits minus the right column's, (N, C)

    def slope(log_beta: float) -> float:
        """Return the derivative of the negative log-likelihood in beta, which rises with it."""
        return float((softmax(math.exp(log_beta) * above, axis=1) * above).sum(axis=1).mean())

    low, high = -math.log(HIGHEST), -math.log(LOWEST)
    if not above.any():
        return _unscaled("every row has the same logit in all columns, so that any temperature is as good")
    if slope(high) <= 0:
        right = int((rows.argmax(axis=1) == wanted).sum())
        return _unscaled(f"the best is {LOWEST:g} or below; of {len(rows)} held-out rows {right} are right")
    if slope(low) >= 0:
        return _unscaled(
            f"the best is {HIGHEST:g} or above: wrong classes have larger logits than the right ones, "
            "or the logits are very large"
        )
    return math.exp(-brentq(slope, low, high))


def _unscaled(why: str) -> float:
    logger.warning("Could not fit a temperature; using 1: %s", why)
    return 1.0
