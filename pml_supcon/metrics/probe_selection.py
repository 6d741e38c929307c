"""How strong the L2 penalty of a linear probe should be, chosen on held-out training rows."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.pipeline import Pipeline

from pml_supcon._arrays import Array, Floats, Labels, as_embeddings, as_labels, check_positive, check_seed, check_share
from pml_supcon.metrics.calibration import negative_log_likelihood
from pml_supcon.metrics.logistic import MAX_ITER, InverseL2, check_fit, fit, logits_of, rank_of_label
from pml_supcon.metrics.strata import hold_out

logger = logging.getLogger(__name__)

CANDIDATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
HELD_OUT = 0.1


class InverseL2Choice(NamedTuple):
    """The chosen ``inverse_l2``, and the held-out accuracy, in [0, 1], of each that was ``tried``, in rising order."""

    inverse_l2: float
    tried: dict[float, float]


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
    """Fit a linear probe with each penalty on a part of the rows, and choose by the likelihood of the others.

    Not by accuracy: on easy rows, or few, one row more or less would decide between penalties of which one spoils the
    probabilities, and with them calibration and what is learnt from fewer labels.

    The held-out part has about its share of every label; a label with one row stays in the fitted part. Test rows play
    no part. `fit_linear_probe` with ``inverse_l2="auto"`` chooses so, and then fits all rows.

    Args:
        features: ``(N, D)`` floats, of training rows only.
        labels: ``(N,)`` integers of at least two values.
        candidates: Values of ``inverse_l2`` (see `fit_linear_probe`), each above 0.
        held_out: Share of the rows that is scored, between 0 and 1.
        seed: Of the division.
        max_iter: As for `fit_linear_probe`.
        standardize: As for `fit_linear_probe`, by the statistics of the fitted part.

    Returns:
        The choice: the lowest `negative_log_likelihood` of the held-out rows; of equal ones the stronger penalty, which
        is the smaller value. A warning is logged where it is the first or the last of several candidates: a better
        one may lie beyond.

    Raises:
        TypeError: If features are not floating point, labels not integers, or an option has the wrong type.
        ValueError: If a shape or an option is wrong, a feature is not finite, there is one label only, or no row can be
            held out.

    Warns:
        ConvergenceWarning: As `fit_linear_probe`, for each candidate.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> labels = np.arange(200) % 2
        >>> features = rng.normal(size=(200, 50)) + labels[:, None] * 0.3
        >>> choice = choose_inverse_l2(features, labels, candidates=[1e-6, 1e-3, 1e3], held_out=0.5)
        >>> choice.inverse_l2, choice.tried
        (0.001, {1e-06: 0.68, 0.001: 0.69, 1000.0: 0.63})
    """
    check_fit(1.0, max_iter)
    _check_options(candidates, held_out, seed)
    rows = as_embeddings(features, "features")
    return choose(
        rows, as_labels(labels, "labels", len(rows)), candidates, held_out, seed, max_iter, standardize, stacklevel=4
    )


def choose(
    features: Floats,
    labels: Labels,
    candidates: Sequence[float],
    held_out: float,
    seed: int,
    max_iter: int,
    standardize: bool,
    *,
    stacklevel: int = 5,
) -> InverseL2Choice:
    """See `choose_inverse_l2`; of arrays that were checked."""
    fitted, held = hold_out(labels, held_out, seed)
    scores = {}
    for value in sorted(float(candidate) for candidate in candidates):
        probe = fit(features[fitted], labels[fitted], value, max_iter, standardize, stacklevel=stacklevel)
        scores[value] = _held_out_scores(probe, features[held], labels[held])
    chosen = max(scores, key=lambda value: scores[value][1])  # the first of equal ones
    tried = {value: accuracy for value, (accuracy, _) in scores.items()}
    if len(tried) > 1 and chosen in (min(tried), max(tried)):
        logger.warning(
            "inverse_l2=%g was chosen, by %d held-out rows, and is at the edge of the candidates (%g to %g): "
            "a better one may lie beyond.",
            chosen,
            len(held),
            min(tried),
            max(tried),
        )
    return InverseL2Choice(chosen, tried)


def resolve(
    inverse_l2: InverseL2, features: Floats, labels: Labels, seed: int, max_iter: int, standardize: bool
) -> float:
    """The number that ``inverse_l2`` is, chosen where it is "auto"."""
    if not isinstance(inverse_l2, str):
        return inverse_l2
    return choose(features, labels, CANDIDATES, HELD_OUT, seed, max_iter, standardize).inverse_l2


def _held_out_scores(probe: Pipeline, features: Floats, labels: Labels) -> tuple[float, float]:
    """Accuracy and log-likelihood, both the higher the better; the probe knows all the labels."""
    accuracy = (rank_of_label(probe, features, labels) < 1).mean()
    columns = np.searchsorted(probe.classes_, labels)
    return float(accuracy), -negative_log_likelihood(logits_of(probe, features), columns)


def _check_options(candidates: Sequence[float], held_out: float, seed: int) -> None:
    if not isinstance(candidates, Sequence) or isinstance(candidates, str):
        raise TypeError(f"Expected argument `candidates` to be a sequence of numbers, but got {candidates!r}.")
    if not candidates:
        raise ValueError("Expected argument `candidates` to have at least one value, but got none.")
    for candidate in candidates:
        check_positive(candidate, "candidates")
    check_share(held_out, "held_out")
    check_seed(seed)
