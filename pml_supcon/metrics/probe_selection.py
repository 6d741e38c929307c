"""The L2 penalty of a linear probe, chosen on held-out training rows."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from sklearn.pipeline import Pipeline

from pml_supcon._arrays import Array, Floats, Labels, as_embeddings, as_labels, check_sequence
from pml_supcon._checks import check_fraction, check_number
from pml_supcon._strata import hold_out
from pml_supcon.metrics.calibration import negative_log_likelihood
from pml_supcon.metrics.logistic import MAX_ITER, ProbeOptions, fit, logits_of, top_accuracies

logger = logging.getLogger(__name__)

CANDIDATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
#: A tenth is enough to compare seven penalties; the probe is then fitted to all rows.
HELD_OUT = 0.1


class InverseL2Choice(NamedTuple):
    """A choice of ``inverse_l2``.

    Attributes:
        inverse_l2: The chosen value.
        tried: The held-out accuracy of each candidate, in [0, 1], in ascending order.
        at_edge: True if a better value may be outside the range of the candidates: the chosen one is the first or the
            last, and its accuracy exceeds the accuracy of its neighbour by more than the neighbour's standard error.
    """

    inverse_l2: float
    tried: dict[float, float]
    at_edge: bool = False


def choose_inverse_l2(
    features: Array,
    labels: Array,
    *,
    candidates: Sequence[float] = CANDIDATES,
    held_out: float = HELD_OUT,
    seed: int = 0,
    max_iter: int = MAX_ITER,
    standardize: bool = True,
) -> InverseL2Choice:
    """Fit a linear probe with each penalty on a part of the rows, and choose by the likelihood of the other rows.

    The likelihood chooses, not the accuracy: on easy rows, or few rows, accuracies differ by a single row, while a
    wrong penalty makes probabilities worse, and with them calibration and the accuracy with fewer labels.

    The held-out part has about the same share of every label; a label with one row stays in the fitted part. Test rows
    are not used. `fit_linear_probe` with ``inverse_l2="auto"`` chooses like this, and then fits all rows.

    Args:
        features: ``(N, D)`` floats, of training rows only.
        labels: ``(N,)`` integers of at least two values.
        candidates: Values of ``inverse_l2`` (see `fit_linear_probe`), each above 0.
        held_out: Share of the rows that is scored, between 0 and 1.
        seed: Seed of the division.
        max_iter: Iterations of L-BFGS, at least 1.
        standardize: Give each feature mean 0 and variance 1 first, by the statistics of the fitted part.

    Returns:
        The choice: the lowest `negative_log_likelihood` of the held-out rows; among equal ones the stronger penalty,
        which is the smaller value. A warning is logged where the choice is ``at_edge``.

    Raises:
        TypeError: If features are not floating point, labels not integers, or an option has the wrong type.
        ValueError: If a shape or an option is wrong, a feature is not finite, there is one label only, or no row can be
            held out.

    Warns:
        ConvergenceWarning: If L-BFGS stopped before the optimum, for each candidate.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> labels = np.arange(200) % 2
        >>> features = rng.normal(size=(200, 50)) + labels[:, None] * 0.3
        >>> choice = choose_inverse_l2(features, labels, candidates=[1e-6, 1e-3, 1e3], held_out=0.5)
        >>> choice.inverse_l2, choice.tried
        (0.001, {1e-06: 0.68, 0.001: 0.69, 1000.0: 0.63})
    """
    options = ProbeOptions(max_iter=max_iter, standardize=standardize, seed=seed)
    check_sequence("candidates", candidates, "numbers")
    if not candidates:
        raise ValueError("Expected argument `candidates` to have at least one value, but got none")
    for candidate in candidates:
        check_number("candidates", candidate, above=0, finite=False)
    check_fraction("held_out", held_out)
    rows = as_embeddings(features, "features")
    return _choose(rows, as_labels(labels, "labels", len(rows)), candidates, held_out, options)


def fit_with_chosen_penalty(features: Floats, labels: Labels, options: ProbeOptions) -> Pipeline:
    """Fit the probe of `fit_linear_probe`, choosing its penalty where it is "auto"; for arrays that were checked."""
    if options.inverse_l2 == "auto":
        chosen = _choose(features, labels, CANDIDATES, HELD_OUT, options).inverse_l2
        options = replace(options, inverse_l2=chosen)
    return fit(features, labels, options)


def _choose(
    features: Floats, labels: Labels, candidates: Sequence[float], held_out: float, options: ProbeOptions
) -> InverseL2Choice:
    # scikit-learn's GridSearchCV with "neg_log_loss" scores NaN where a label is not among the held-out rows, clips the
    # probabilities of float32 features, and does not report which candidate did not converge.
    fitted, held = hold_out(labels, held_out, options.seed)
    accuracies, losses = {}, {}
    for value in sorted(float(candidate) for candidate in candidates):
        probe = fit(features[fitted], labels[fitted], replace(options, inverse_l2=value))
        accuracies[value], _ = top_accuracies(probe, features[held], labels[held])
        columns = np.searchsorted(probe.classes_, labels[held])  # every label has a fitted row
        losses[value] = negative_log_likelihood(logits_of(probe, features[held]), columns)
    chosen = min(losses, key=lambda value: losses[value])  # the first, which is the smallest, of equal ones
    at_edge = False
    if len(losses) > 1 and chosen in (min(losses), max(losses)):
        values = list(losses)
        near = accuracies[values[1] if chosen == values[0] else values[-2]]
        at_edge = accuracies[chosen] - near > math.sqrt(near * (1 - near) / len(held))
    if at_edge:
        logger.warning(
            "inverse_l2=%g was chosen, by %d held-out rows, and is at the edge of the candidates (%g to %g): "
            "a better one may be outside their range.",
            chosen,
            len(held),
            min(losses),
            max(losses),
        )
    return InverseL2Choice(chosen, accuracies, at_edge)
