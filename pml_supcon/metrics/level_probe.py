"""Linear-probe accuracy of frozen features at each level of a hierarchy."""

from typing import Unpack

import numpy as np

from pml_supcon._arrays import Array, Labels, as_labels, as_numpy
from pml_supcon.metrics.linear_probe import score_linear_probe
from pml_supcon.metrics.logistic import ProbeKeywords, ProbeOptions, as_feature_splits, log_unseen_labels
from pml_supcon.metrics.probe_selection import fit_with_chosen_penalty


def level_probe_metrics(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    **options: Unpack[ProbeKeywords],
) -> dict[str, float]:
    """Fit a linear probe for each level of the labels, and score each on the test rows (see `linear_probe_metrics`).

    Every level has a probe of its own: coarse labels are not derived from predicted fine labels. A level with one label
    in training has no probe: this label is predicted for every test row.

    Args:
        train_features: ``(N, D)`` floats.
        train_labels: ``(N, L)`` integers, a column for each level, coarse to fine. They need not be nested.
        test_features: ``(M, D)`` floats of rows that are not among the training rows.
        test_labels: ``(M, L)`` integers, with the same levels. A label that its level lacks in training cannot be
            predicted: its rows count as errors, and a warning is logged with their number.
        **options: ``inverse_l2``, ``max_iter``, ``standardize`` and ``seed`` of `fit_linear_probe`, but ``inverse_l2``
            is "auto" by default: chosen for each level.

    Returns:
        ``level1/top1`` and ``level1/top5`` of the coarsest level, to ``levelL/top1`` and ``levelL/top5`` of the finest,
        in [0, 1]: the share of rows whose label scores highest, or among the five highest.

    Raises:
        TypeError: If features are not floating point, labels not integers, or an option has the wrong type.
        ValueError: If a shape, a width or an option is wrong, a feature is not finite, or no row can be held out for
            "auto".

    Warns:
        ConvergenceWarning: If L-BFGS stopped before the optimum.

    Examples:
        >>> import torch
        >>> features = torch.tensor([[-3.0], [-1.0], [1.0], [3.0]]).repeat(10, 1)
        >>> labels = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 3]]).repeat(10, 1)
        >>> found = level_probe_metrics(features, labels, features[:4] + 0.1, labels[:4], inverse_l2=100.0)
        >>> found["level1/top1"], found["level2/top1"]
        (1.0, 1.0)
    """
    options.setdefault("inverse_l2", "auto")
    checked = ProbeOptions(**options)
    train, test = as_feature_splits(train_features, test_features)
    learnt = _as_levels(train_labels, "train_labels", len(train))
    wanted = _as_levels(test_labels, "test_labels", len(test))
    if learnt.shape[1] != wanted.shape[1]:
        raise ValueError(
            "Expected arguments `train_labels` and `test_labels` to have the same number of levels, but got shapes "
            f"{learnt.shape} and {wanted.shape}"
        )
    found: dict[str, float] = {}
    for level, (known, right) in enumerate(zip(learnt.T, wanted.T, strict=True), start=1):
        if (known == known[0]).all():
            log_unseen_labels(right, known)
            scores = dict.fromkeys(("top1", "top5"), float((right == known[0]).mean()))
        else:
            scores = score_linear_probe(fit_with_chosen_penalty(train, known, checked), test, right)
        found |= {f"level{level}/{name}": score for name, score in scores.items()}
    return found


def _as_levels(value: Array, name: str, rows: int) -> Labels:
    levels = as_numpy(value, name)
    if levels.ndim != 2 or len(levels) != rows or not levels.shape[1]:
        raise ValueError(f"Expected argument `{name}` to have the shape ({rows}, L), L >= 1, but got {levels.shape}")
    return np.stack([as_labels(column, name, rows) for column in levels.T], axis=1)
