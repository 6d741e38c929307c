"""Linear-probe accuracy against the share of labelled training rows."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from pml_supcon._arrays import Array, check_sequence
from pml_supcon._checks import check_fraction, check_number
from pml_supcon._strata import draw_rows
from pml_supcon.metrics.logistic import (
    INVERSE_L2,
    MAX_ITER,
    ProbeOptions,
    as_splits,
    fit,
    log_unseen_labels,
    top_accuracies,
)

SHARES = (0.01, 0.1, 1.0)


class LearningCurvePoint(TypedDict):
    """The accuracies of a probe on a ``share`` of the training rows, and the number of these ``rows``."""

    share: float
    rows: int
    top1: float
    top5: float


def learning_curve(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    inverse_l2: float = INVERSE_L2,
    max_iter: int = MAX_ITER,
    standardize: bool = True,
) -> list[LearningCurvePoint]:
    """Fit a linear probe (see `fit_linear_probe`) on each share of the training rows, and score it.

    A share has about the same part of every label, at least one row of each: with many labels a small share has more
    rows. 1 % and 10 % of ImageNet's labels are the budgets of Chen et al., *A Simple Framework for Contrastive Learning
    of Visual Representations* (ICML 2020), section 6, where the encoder is fine-tuned on them; here it stays frozen.

    Args:
        train_features: ``(N, D)`` floats.
        train_labels: ``(N,)`` integers of at least two values.
        test_features: ``(M, D)`` floats of rows that are not among the training rows.
        test_labels: ``(M,)`` integers. Rows with a label that training lacks count as errors, and a warning is logged
            with their number.
        shares: Shares of the training rows, each above 0 and at most 1.
        seed: Seed of the draw of each share.
        inverse_l2: Inverse of the L2 penalty of every probe, above 0; not "auto": few rows would choose by chance.
        max_iter: Iterations of L-BFGS, at least 1.
        standardize: Give each feature mean 0 and variance 1 first, by the statistics of the share.

    Returns:
        A dictionary for each share, in their order: ``share``, the number of its ``rows``, and the accuracies ``top1``
        and ``top5`` on the test rows, in [0, 1], as `linear_probe_metrics`.

    Raises:
        TypeError: If features are not floating point, labels not integers, or an option has the wrong type.
        ValueError: If a shape, a width or an option is wrong, a feature is not finite, or there is one label only.

    Warns:
        ConvergenceWarning: If L-BFGS stopped before the optimum, for each share.

    Examples:
        >>> labels = np.arange(400) % 2
        >>> features = np.random.default_rng(0).normal(size=(400, 9)) + labels[:, None]
        >>> parts = features[:200], labels[:200], features[200:], labels[200:]
        >>> for point in learning_curve(*parts, shares=[0.01, 0.1, 1.0]):
        ...     print(point)
        {'share': 0.01, 'rows': 2, 'top1': 0.565, 'top5': 1.0}
        {'share': 0.1, 'rows': 20, 'top1': 0.885, 'top5': 1.0}
        {'share': 1.0, 'rows': 200, 'top1': 0.92, 'top5': 1.0}
    """
    check_number("inverse_l2", inverse_l2, above=0, finite=False)
    options = ProbeOptions(inverse_l2=inverse_l2, max_iter=max_iter, standardize=standardize, seed=seed)
    check_sequence("shares", shares, "numbers")
    for share in shares:
        check_fraction("shares", share, one=True)
    train, learnt, test, wanted = as_splits(train_features, train_labels, test_features, test_labels)
    known = np.unique(learnt)
    log_unseen_labels(wanted, known)
    points: list[LearningCurvePoint] = []
    for share in shares:
        count = max(round(share * len(train)), len(known))
        rows = draw_rows(learnt, count, np.random.default_rng(seed), at_least=1)
        top1, top5 = top_accuracies(fit(train[rows], learnt[rows], options), test, wanted)
        points.append({"share": float(share), "rows": len(rows), "top1": top1, "top5": top5})
    return points
