"""Accuracy of frozen features with few labelled rows of each class, and the PML tester that reports it."""

import math
from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np

from pml_supcon._arrays import Array, Floats, Labels, check_count, check_positive, check_seed
from pml_supcon.metrics.intervals import mean_interval
from pml_supcon.metrics.logistic import INVERSE_L2, MAX_ITER, as_splits, check_fit, fit, rank_of_label, tell_unseen

Classifier = Literal["prototypes", "logistic"]

SHOTS = (1, 5)
DRAWS = 100
CHUNK_BYTES = 64 * 2**20


class FewShotResult(TypedDict):
    """The mean ``accuracy`` over ``draws`` of ``shots`` rows a class; its confidence interval, ``low`` to ``high``."""

    shots: int
    draws: int
    accuracy: float
    low: float
    high: float


def few_shot_metrics(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    *,
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    classifier: Classifier = "prototypes",
    seed: int = 0,
    inverse_l2: float = INVERSE_L2,
    max_iter: int = MAX_ITER,
) -> list[FewShotResult]:
    r"""Draw k training rows of each class, classify all test rows by them, and repeat.

    All rows get unit length first (a row of zeros stays one). ``"prototypes"`` names the class whose mean row
    :math:`\mu_c` has the largest cosine with the test row: the prototypes of Snell et al., *Prototypical Networks for
    Few-shot Learning* (NeurIPS 2017), equation 1, by the cosine instead of their distance. Of equal cosines the smaller
    label goes first. ``"logistic"`` fits logistic regression to the unit rows, as Tian et al., *Rethinking Few-Shot
    Image Classification* (ECCV 2020), section 3.

    All classes are in every draw, and so are all test rows: the interval is of the draw of the labelled rows alone.

    Args:
        train_features: ``(N, D)`` floats.
        train_labels: ``(N,)`` integers of at least two values, each in at least k rows.
        test_features: ``(M, D)`` floats of rows that are not among the training rows.
        test_labels: ``(M,)`` integers. Rows with a label that training lacks count as errors, and a warning is logged
            with their number.
        shots: Values of k, each at least 1.
        draws: Times to draw, at least 2.
        classifier: See above.
        seed: Of the draws; those of a k do not depend on the other k.
        inverse_l2: As for `fit_linear_probe`; for "logistic".
        max_iter: As for `fit_linear_probe`; for "logistic".

    Returns:
        A dictionary for each k, in their order: ``shots`` (k), ``draws``, the mean ``accuracy`` over the draws, in
        [0, 1], and the ends of its 95 % confidence interval, ``low`` and ``high``: Student's t over the draws, which
        can reach beyond [0, 1] where the accuracy is close to an end.

    Raises:
        TypeError: If features are not floating point, labels not integers, or an option has the wrong type.
        ValueError: If a shape, a width or an option is wrong, a feature is not finite, there is one label only, or a
            label has fewer rows than k.

    Warns:
        ConvergenceWarning: As `fit_linear_probe`.

    Examples:
        >>> labels = np.arange(40) % 2
        >>> features = np.random.default_rng(0).normal(size=(40, 3)) + np.eye(3)[labels] * 3
        >>> for found in few_shot_metrics(features[:20], labels[:20], features[20:], labels[20:], draws=10):
        ...     print({name: round(value, 2) for name, value in found.items()})
        {'shots': 1, 'draws': 10, 'accuracy': 0.98, 'low': 0.96, 'high': 1.0}
        {'shots': 5, 'draws': 10, 'accuracy': 1.0, 'low': 1.0, 'high': 1.0}
    """
    _check_options(shots, draws, classifier, seed, inverse_l2, max_iter)
    train, learnt, test, wanted = as_splits(train_features, train_labels, test_features, test_labels)
    _check_rows(learnt, shots)
    tell_unseen(wanted, np.unique(learnt))
    train, test = _unit(train), _unit(test)
    values = np.unique(learnt)
    results: list[FewShotResult] = []
    for k in shots:
        accuracies = []
        for rows in _draw(learnt, k, draws, np.random.default_rng([seed, k])):
            if classifier == "prototypes":
                found = values[_nearest(test, _unit(train[rows].mean(axis=1)))] == wanted
            else:
                chosen = rows.ravel()
                probe = fit(train[chosen], learnt[chosen], inverse_l2, max_iter, standardize=False)
                found = rank_of_label(probe, test, wanted) < 1
            accuracies.append(float(found.mean()))
        low, high = mean_interval(accuracies)
        results.append(
            {"shots": int(k), "draws": int(draws), "accuracy": float(np.mean(accuracies)), "low": low, "high": high}
        )
    return results


def _draw(labels: Labels, k: int, draws: int, rng: np.random.Generator) -> Labels:
    """Row numbers ``(draws, C, k)``, without repetition within a draw."""
    chosen = []
    for value in np.unique(labels):
        rows = np.flatnonzero(labels == value)
        order = rng.random((draws, len(rows))).argpartition(k - 1, axis=1)[:, :k]
        chosen.append(rows[order])
    return np.stack(chosen, axis=1)


def _nearest(rows: Floats, prototypes: Floats) -> Labels:
    """Number of the prototype with the largest cosine, ``(M,)``."""
    size = max(1, CHUNK_BYTES // (prototypes.itemsize * len(prototypes)))
    parts = np.array_split(rows, math.ceil(len(rows) / size))
    return np.concatenate([(part @ prototypes.T).argmax(axis=1) for part in parts])


def _unit(rows: Floats) -> Floats:
    # by the largest value first: squares could overflow, or underflow to a length of 0
    rows = rows / np.where((peak := np.abs(rows).max(axis=1, keepdims=True)) > 0, peak, 1)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def _check_rows(labels: Labels, shots: Sequence[int]) -> None:
    values, counts = np.unique(labels, return_counts=True)
    if len(values) < 2:
        raise ValueError(f"Expected argument `train_labels` to have at least two labels, but got only {values[0]}.")
    scarce = np.flatnonzero(counts < max(shots, default=1))
    if len(scarce):
        named = ", ".join(f"{counts[place]} of label {values[place]}" for place in scarce[:5])
        more = f" and {len(scarce) - 5} other labels" if len(scarce) > 5 else ""
        raise ValueError(
            f"Expected argument `train_labels` to have at least {max(shots)} rows of every label, for "
            f"{max(shots)} shots, but got {named}{more}."
        )


def _check_options(
    shots: Sequence[int], draws: int, classifier: str, seed: int, inverse_l2: float, max_iter: int
) -> None:
    if not isinstance(shots, Sequence) or isinstance(shots, str):
        raise TypeError(f"Expected argument `shots` to be a sequence of integers, but got {shots!r}.")
    for k in shots:
        check_count(k, "shots")
    check_count(draws, "draws")
    if draws < 2:
        raise ValueError(f"Expected argument `draws` to be at least 2, for an interval, but got {draws!r}.")
    if classifier not in ("prototypes", "logistic"):
        raise ValueError(f'Expected argument `classifier` to be "prototypes" or "logistic", but got {classifier!r}.')
    check_seed(seed)
    check_positive(inverse_l2, "inverse_l2")
    check_fit(inverse_l2, max_iter)
