"""Scores of frozen features for numbers: ridge regression."""

import numpy as np
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pml_supcon._arrays import Array, Floats, as_embeddings, as_numpy
from pml_supcon.metrics.logistic import as_feature_splits, check_squares, finite_features

#: Penalties over the number of rows: a standardised feature alone has its weight halved by 1.
PENALTIES = 10.0 ** np.arange(-6, 3)


def number_probe_metrics(
    train_features: Array, train_labels: Array, test_features: Array, test_labels: Array
) -> dict[str, float]:
    r"""Fit ridge regression on the standardised training rows, and score it on the test rows.

    The objective is :math:`\sum_i (y_i - w \cdot x_i - b)^2 + \lambda N \lVert w \rVert^2`, for each column of the
    labels alone, over N rows. Each :math:`\lambda` is the one of 1e-6, 1e-5, ..., 100 with the lowest squared error in
    leave-one-out cross-validation of the training rows. Features have mean 0 and variance 1 by the statistics of the
    training rows. All is computed in float64.

    Args:
        train_features: ``(N, D)`` floats, N >= 2.
        train_labels: ``(N,)`` or ``(N, K)`` finite numbers in any unit, floats or integers, not all equal in a column.
        test_features: ``(M, D)`` floats of rows that are not among the training rows.
        test_labels: ``(M,)`` or ``(M, K)``, as ``train_labels``.

    Returns:
        Means over the K columns. ``r2``: the coefficient of determination, at most 1; 0 for the mean of the test
        labels as the prediction, below 0 for worse ones. ``spearman``: the rank correlation, in [-1, 1]; 0 if all
        predictions are equal. ``mae``: the mean absolute error, in the unit of the labels.

    Raises:
        TypeError: If features are not floating point, or labels not numbers.
        ValueError: If a shape or a width is wrong, a value is not finite or too large to square, or all labels of a
            column are equal, in training or in test.

    Source:
        scikit-learn's ``RidgeCV``, ``r2_score`` and ``mean_absolute_error``, SciPy's ``spearmanr``.

    Examples:
        >>> features = np.random.default_rng(0).normal(size=(60, 3))
        >>> ages = 40 + features @ [10.0, 5.0, 0.0]
        >>> found = number_probe_metrics(features[:40], ages[:40], features[40:], ages[40:])
        >>> {name: round(value, 3) for name, value in found.items()}
        {'r2': 1.0, 'spearman': 1.0, 'mae': 0.0}
    """
    train, test = (each.astype(np.float64) for each in as_feature_splits(train_features, test_features))
    learnt = _as_numbers(train_labels, "train_labels", len(train))
    wanted = _as_numbers(test_labels, "test_labels", len(test))
    if learnt.shape[1] != wanted.shape[1]:
        raise ValueError(
            "Expected arguments `train_labels` and `test_labels` to have the same number of columns, but got shapes "
            f"{learnt.shape} and {wanted.shape}"
        )
    check_squares(train, "train_features")
    probe = make_pipeline(StandardScaler(), RidgeCV(PENALTIES * len(train), alpha_per_target=True))
    with finite_features():
        predicted = probe.fit(train, learnt).predict(test).reshape(wanted.shape)  # (M, K)
    ranks = [
        spearmanr(right, given).statistic if np.ptp(given) else 0.0
        for right, given in zip(wanted.T, predicted.T, strict=True)
    ]
    return {
        "r2": float(r2_score(wanted, predicted)),
        "spearman": float(np.mean(ranks)),
        "mae": float(mean_absolute_error(wanted, predicted)),
    }


def _as_numbers(value: Array, name: str, rows: int) -> Floats:
    """Check ``(rows,)`` or ``(rows, K)`` numbers that differ in every column; return them as float64 ``(rows, K)``."""
    numbers = as_numpy(value, name)
    if numbers.dtype.kind not in "iuf":
        raise TypeError(f"Expected argument `{name}` to be numbers, but got {numbers.dtype}")
    if numbers.ndim not in (1, 2) or len(numbers) != rows or not numbers.size:
        raise ValueError(
            f"Expected argument `{name}` to have the shape ({rows},) or ({rows}, K), K >= 1, but got {numbers.shape}"
        )
    columns = as_embeddings(numbers.astype(np.float64).reshape(rows, -1), name)
    check_squares(columns, name)
    equal = np.flatnonzero((columns == columns[0]).all(axis=0))
    if len(equal):
        raise ValueError(
            f"Expected argument `{name}` to have at least two values in each column, but got only "
            f"{columns[0, equal[0]]:g} in column {equal[0]}"
        )
    return columns
