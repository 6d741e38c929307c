"""Scores of frozen features for label sets: one binary logistic regression for each label."""

from dataclasses import replace
from typing import Unpack

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, f1_score

from pml_supcon._arrays import Array, Floats, as_numpy
from pml_supcon._strata import hold_out
from pml_supcon.metrics.logistic import ProbeKeywords, ProbeOptions, as_feature_splits, finite_features, fit
from pml_supcon.metrics.probe_selection import CANDIDATES, HELD_OUT

Sets = npt.NDArray[np.bool_]


def label_sets_probe_metrics(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    **options: Unpack[ProbeKeywords],
) -> dict[str, float]:
    r"""Fit one binary logistic regression for each label on the training rows, and score them on the test rows.

    All labels share one penalty. A label is predicted where its probability is above 0.5. A label that no training row
    has is predicted for no test row, and a label that all training rows have for every test row: its score is constant.

    Args:
        train_features: ``(N, D)`` floats.
        train_labels: ``(N, C)`` bool, or 0 and 1 in any dtype: 1 where the row has the label.
        test_features: ``(M, D)`` floats of rows that are not among the training rows.
        test_labels: ``(M, C)``, as ``train_labels``, with the same C labels in the same order.
        **options: ``inverse_l2``, ``max_iter``, ``standardize`` and ``seed`` of `fit_linear_probe`, but ``inverse_l2``
            is "auto" by default: of 1e-4, 1e-3, ..., 100, the value with the lowest mean binary cross entropy of a
            random tenth of the training rows, over all labels; among equal ones the smallest. Then all rows are fitted.

    Returns:
        Three scores in [0, 1]. ``map`` is the mean over labels of the average precision (the mean precision at the
        ranks of the label's rows, without interpolation); labels that no test row or every test row has are left out.
        ``f1_micro`` is F1, :math:`2 TP / (2 TP + FP + FN)`, over all pairs of row and label. ``f1_macro`` is the mean
        over labels of their F1; labels that no test row has and that are predicted for none are left out.

    Raises:
        TypeError: If features are not floating point, labels not numbers, or an option has the wrong type.
        ValueError: If a shape, a width or an option is wrong, a feature is not finite, a label is not 0 or 1, no label
            differs between rows of a set, or no row can be held out for "auto".

    Warns:
        ConvergenceWarning: If L-BFGS stopped before the optimum, for each label.

    Source:
        Zhang and Zhou, *A Review on Multi-Label Learning Algorithms* (TKDE 2014): binary relevance, and micro and macro
        averages. The CF1 of papers on MS-COCO is another score, F1 of the mean precision and the mean recall.

    Examples:
        >>> labels = np.random.default_rng(0).random((60, 3)) < [0.5, 0.3, 0.2]
        >>> features = labels + 0.1 * np.random.default_rng(1).normal(size=(60, 3))
        >>> label_sets_probe_metrics(features[:40], labels[:40], features[40:], labels[40:])
        {'map': 1.0, 'f1_micro': 1.0, 'f1_macro': 1.0}
    """
    options.setdefault("inverse_l2", "auto")
    checked = ProbeOptions(**options)
    train, test = as_feature_splits(train_features, test_features)
    learnt, wanted = _as_sets(train_labels, "train_labels", len(train)), _as_sets(test_labels, "test_labels", len(test))
    if learnt.shape[1] != wanted.shape[1]:
        raise ValueError(
            "Expected arguments `train_labels` and `test_labels` to have the same number of labels, but got shapes "
            f"{learnt.shape} and {wanted.shape}"
        )
    _check_some_vary(learnt, "train_labels")
    _check_some_vary(wanted, "test_labels")
    if checked.inverse_l2 == "auto":
        checked = replace(checked, inverse_l2=_choose(train, learnt, checked))
    scores = _log_odds(train, learnt, test, checked)
    # Average precision ranks the rows of a label, (M,); it is undefined where no row, or every row, is a hit.
    with finite_features():
        precisions = [average_precision_score(wanted[:, c], scores[:, c]) for c in np.flatnonzero(_vary(wanted))]
    # Columns are scored alone, as scikit-learn reads a matrix of one column as two classes. NaN where F1 is 0 / 0.
    hits, truth = (scores > 0).astype(int), wanted.astype(int)
    f1 = [f1_score(truth[:, c], hits[:, c], zero_division=np.nan) for c in range(truth.shape[1])]
    return {
        "map": float(np.mean(precisions)),
        "f1_micro": float(f1_score(truth.ravel(), hits.ravel())),
        "f1_macro": float(np.nanmean(f1)),
    }


def _log_odds(train: Floats, learnt: Sets, test: Floats, options: ProbeOptions) -> Floats:
    """Return the log-odds ``(M, C)`` of each label; -1 or 1 where no, or every, training row has the label."""
    scores = np.empty((len(test), learnt.shape[1]))
    for c, varies in enumerate(_vary(learnt)):
        if varies:
            probe = fit(train, learnt[:, c].astype(np.int64), options)
            with finite_features():
                scores[:, c] = probe.decision_function(test)
        else:
            scores[:, c] = 1 if learnt[0, c] else -1
    return scores


def _choose(train: Floats, learnt: Sets, options: ProbeOptions) -> float:
    """Return the ``inverse_l2`` of the lowest cross entropy, over the labels that differ between the fitted rows."""
    fitted, held = hold_out(np.zeros(len(train), dtype=np.int64), HELD_OUT, options.seed)
    varies = _vary(learnt[fitted])
    if not varies.any():
        raise ValueError(
            "Expected argument `train_labels` to have a label that differs between rows after a tenth of them is held "
            'out for inverse_l2="auto", but got none'
        )
    losses = {}
    for value in CANDIDATES:  # ascending: the first of equal ones is the smallest
        odds = _log_odds(train[fitted], learnt[fitted][:, varies], train[held], replace(options, inverse_l2=value))
        # The cross entropy of log-odds z is log(1 + exp(-z)) for a label that the row has, log(1 + exp(z)) for another.
        losses[value] = float(np.logaddexp(0, np.where(learnt[held][:, varies], -odds, odds)).mean())
    return min(losses, key=lambda value: losses[value])


def _as_sets(value: Array, name: str, rows: int) -> Sets:
    sets = as_numpy(value, name)
    if sets.dtype.kind not in "biuf":
        raise TypeError(f"Expected argument `{name}` to be bool, or 0 and 1, but got {sets.dtype}")
    if sets.ndim != 2 or len(sets) != rows or not sets.shape[1]:
        raise ValueError(f"Expected argument `{name}` to have the shape ({rows}, C), C >= 1, but got {sets.shape}")
    other = sets[(sets != 0) & (sets != 1)]
    if other.size:
        raise ValueError(f"Expected argument `{name}` to be bool, or 0 and 1, but got {other[0]}")
    return sets.astype(bool)


def _vary(sets: Sets) -> Sets:
    """Return ``(C,)``: True for labels that some rows have and others lack."""
    return np.logical_and(sets.any(axis=0), ~sets.all(axis=0))


def _check_some_vary(sets: Sets, name: str) -> None:
    if not _vary(sets).any():
        raise ValueError(
            f"Expected argument `{name}` to have a label that some rows have and others lack, but got none "
            f"among {sets.shape[1]} labels of {len(sets)} rows"
        )
