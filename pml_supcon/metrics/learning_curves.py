"""Linear-probe accuracy by how many training rows have a label."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from pml_supcon._arrays import Array, check_positive, check_seed, check_share
from pml_supcon.metrics.logistic import INVERSE_L2, MAX_ITER, as_splits, check_fit, fit, rank_of_label, tell_unseen
from pml_supcon.metrics.strata import draw_rows

SHARES = (0.01, 0.1, 1.0)


class LearningCurvePoint(TypedDict):
    """The accuracies of a probe on a ``share`` of the training rows, which are ``rows``."""

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
    """Score linear probes (see `fit_linear_probe`) that see a share of the training labels each.

    A share has about its part of every label, and at least one row of each, so that with many labels a small share has
    more rows than it says. 1 % and 10 % of ImageNet's labels are the budgets of Chen et al., *A Simple Framework for
    Contrastive Learning of Visual Representations* (ICML 2020), section 6, where the encoder is fine-tuned on them;
    here it stays frozen.

    Args:
        train_features: ``(N, D)`` floats.
        train_labels: ``(N,)`` integers of at least two values.
        test_features: ``(M, D)`` floats of rows that are not among the training rows.
        test_labels: ``(M,)`` integers, as for `linear_probe_metrics`.
        shares: Shares of the training rows, each above 0 and at most 1.
        seed: Of the draw of each share.
        inverse_l2: As for `fit_linear_probe`, for every share; not "auto": few rows would choose by chance.
        max_iter: As for `fit_linear_probe`.
        standardize: As for `fit_linear_probe`, by the statistics of the share.

    Returns:
        A dictionary for each share, in their order: ``share``, the number of its ``rows``, and the accuracies ``top1``
        and ``top5`` on the test rows, in [0, 1], as `linear_probe_metrics`.

    Raises:
        TypeError: If features are not floating point, labels not integers, or an option has the wrong type.
        ValueError: If a shape, a width or an option is wrong, a feature is not finite, or there is one label only.

    Warns:
        ConvergenceWarning: As `fit_linear_probe`, for each share.

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
    check_positive(inverse_l2, "inverse_l2")
    check_fit(inverse_l2, max_iter)
    check_seed(seed)
    _check_shares(shares)
    train, learnt, test, wanted = as_splits(train_features, train_labels, test_features, test_labels)
    tell_unseen(wanted, np.unique(learnt))
    points: list[LearningCurvePoint] = []
    for share in shares:
        count = max(round(share * len(train)), len(np.unique(learnt)))
        rows = draw_rows(learnt, count, np.random.default_rng(seed), at_least=1)
        probe = fit(train[rows], learnt[rows], inverse_l2, max_iter, standardize)
        rank = rank_of_label(probe, test, wanted)
        top1, top5 = (float((rank < k).mean()) for k in (1, 5))
        points.append({"share": float(share), "rows": len(rows), "top1": top1, "top5": top5})
    return points


def _check_shares(shares: Sequence[float]) -> None:
    if not isinstance(shares, Sequence) or isinstance(shares, str):
        raise TypeError(f"Expected argument `shares` to be a sequence of numbers, but got {shares!r}.")
    for share in shares:
        check_share(share, "shares", whole=True)
