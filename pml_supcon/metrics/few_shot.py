"""Accuracy of frozen features with few labelled rows of each class."""

import math
from collections.abc import Sequence
from typing import Literal, TypedDict, get_args

import numpy as np

from pml_supcon._arrays import Array, Floats, Labels, check_sequence
from pml_supcon._checks import check_choice, check_int, check_number
from pml_supcon.metrics.intervals import mean_interval
from pml_supcon.metrics.logistic import (
    INVERSE_L2,
    MAX_ITER,
    ProbeOptions,
    as_splits,
    fit,
    log_unseen_labels,
    top_accuracies,
)

Classifier = Literal["prototypes", "logistic"]

SHOTS = (1, 5)
DRAWS = 100
CHUNK_BYTES = 64 * 2**20


class FewShotResult(TypedDict):
    """The mean ``accuracy`` over ``draws`` of ``shots`` rows a class, and its confidence interval."""

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

    All rows are normalised first (a zero row stays zero). ``"prototypes"`` predicts the class whose mean row
    :math:`\mu_c` has the largest cosine with the test row: the prototypes of Snell et al., *Prototypical Networks for
    Few-shot Learning* (NeurIPS 2017), equation 1, with the cosine in place of their distance. Among equal cosines the
    smaller label is predicted. ``"logistic"`` fits logistic regression to the normalised rows, as Tian et al.,
    *Rethinking Few-Shot Image Classification* (ECCV 2020), section 3.

    Every draw has all classes and is scored on all test rows: the interval reflects only the draw of the labelled rows.

    Args:
        train_features: ``(N, D)`` floats.
        train_labels: ``(N,)`` integers of at least two values, each in at least k rows.
        test_features: ``(M, D)`` floats of rows that are not among the training rows.
        test_labels: ``(M,)`` integers. Rows with a label that training lacks count as errors, and a warning is logged
            with their number.
        shots: Values of k, each at least 1.
        draws: Number of draws for each k, at least 2.
        classifier: "prototypes" or "logistic".
        seed: Seed of the draws; the draws for one k do not depend on the other k.
        inverse_l2: Inverse of the L2 penalty of "logistic", above 0.
        max_iter: Iterations of L-BFGS of "logistic", at least 1.

    Returns:
        A dictionary for each k, in their order: ``shots`` (k), ``draws``, the mean ``accuracy`` over the draws, in
        [0, 1], and the ends of its 95 % confidence interval, ``low`` and ``high``: Student's t over the draws. The
        interval can exceed [0, 1].

    Raises:
        TypeError: If features are not floating point, labels not integers, or an option has the wrong type.
        ValueError: If a shape, a width or an option is wrong, a feature is not finite, there is one label only, or a
            label has fewer rows than k.

    Warns:
        ConvergenceWarning: If L-BFGS stopped before the optimum.

    Examples:
        >>> labels = np.arange(40) % 2
        >>> features = np.random.default_rng(0).normal(size=(40, 3)) + np.eye(3)[labels] * 3
        >>> for found in few_shot_metrics(features[:20], labels[:20], features[20:], labels[20:], draws=10):
        ...     print({name: round(value, 2) for name, value in found.items()})
        {'shots': 1, 'draws': 10, 'accuracy': 0.98, 'low': 0.96, 'high': 1.0}
        {'shots': 5, 'draws': 10, 'accuracy': 1.0, 'low': 1.0, 'high': 1.0}
    """
    check_few_shot_options(shots, draws, classifier, seed, inverse_l2, max_iter)
    options = ProbeOptions(inverse_l2=inverse_l2, max_iter=max_iter, standardize=False)
    train, learnt, test, wanted = as_splits(train_features, train_labels, test_features, test_labels)
    _check_rows(learnt, shots)
    values = np.unique(learnt)
    log_unseen_labels(wanted, values)
    train, test = _unit(train), _unit(test)
    results: list[FewShotResult] = []
    for k in shots:
        accuracies = []
        for rows in _draw(learnt, k, draws, np.random.default_rng([seed, k])):
            if classifier == "prototypes":
                # The mean row of each class, (C, D); the test row belongs to the one with the largest cosine.
                predicted = values[_nearest(test, _unit(train[rows].mean(axis=1)))]
                accuracies.append(float((predicted == wanted).mean()))
            else:
                chosen = rows.ravel()
                accuracies.append(top_accuracies(fit(train[chosen], learnt[chosen], options), test, wanted)[0])
        low, high = mean_interval(accuracies)
        results.append(
            {"shots": int(k), "draws": int(draws), "accuracy": float(np.mean(accuracies)), "low": low, "high": high}
        )
    return results


def _draw(labels: Labels, k: int, draws: int, rng: np.random.Generator) -> Labels:
    """Draw row numbers ``(draws, C, k)``, without repetition within a draw."""
    chosen = []
    for value in np.unique(labels):
        rows = np.flatnonzero(labels == value)
        order = rng.random((draws, len(rows))).argpartition(k - 1, axis=1)[:, :k]
        chosen.append(rows[order])
    return np.stack(chosen, axis=1)


def _nearest(rows: Floats, prototypes: Floats) -> Labels:
    """Return the number of the prototype with the largest cosine, ``(M,)``."""
    size = max(1, CHUNK_BYTES // (prototypes.itemsize * len(prototypes)))
    parts = np.array_split(rows, math.ceil(len(rows) / size))
    return np.concatenate([(part @ prototypes.T).argmax(axis=1) for part in parts])


def _unit(rows: Floats) -> Floats:
    """Normalise rows.

    They are first divided by their largest value, because squares could overflow or underflow.
    """
    rows = rows / np.where((peak := np.abs(rows).max(axis=1, keepdims=True)) > 0, peak, 1)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def _check_rows(labels: Labels, shots: Sequence[int]) -> None:
    values, counts = np.unique(labels, return_counts=True)
    if len(values) < 2:
        raise ValueError(f"Expected argument `train_labels` to have at least two labels, but got only {values[0]}")
    most = max(shots, default=1)
    scarce = [f"{count} of label {value}" for value, count in zip(values, counts, strict=True) if count < most]
    if scarce:
        more = f" and {len(scarce) - 5} other labels" if len(scarce) > 5 else ""
        raise ValueError(
            f"Expected argument `train_labels` to have at least {most} rows of every label, for {most} shots, "
            f"but got {', '.join(scarce[:5])}{more}"
        )


def check_few_shot_options(
    shots: Sequence[int], draws: int, classifier: str, seed: int, inverse_l2: float, max_iter: int
) -> None:
    """Raise unless the options have the types and ranges of `few_shot_metrics`."""
    check_sequence("shots", shots, "integers")
    for k in shots:
        check_int("shots", k, low=1)
    check_int("draws", draws, low=2)  # an interval needs two
    check_choice("classifier", classifier, get_args(Classifier))
    check_number("inverse_l2", inverse_l2, above=0, finite=False)
    ProbeOptions(max_iter=max_iter, seed=seed)
