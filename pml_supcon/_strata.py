"""Stratified draws: every label keeps its share of the rows.

``data.splits`` takes the quotas from here and draws with a generator of PyTorch: ``draw_rows`` in its place would
change the images of every recorded split.
"""

import numpy as np

from pml_supcon._arrays import Labels


def hold_out(labels: Labels, share: float, seed: int) -> tuple[Labels, Labels]:
    """Divide rows into fitted and held-out ones; about the same ``share`` of every label is held out.

    Every label keeps at least one fitted row, so that a label with a single row is never held out.

    Returns:
        The fitted and the held-out row numbers, int64, in ascending order.

    Raises:
        ValueError: If the share leaves no row to hold out, or a label without a row to fit.
    """
    _, sizes = np.unique(labels, return_counts=True)
    count, most = round(share * len(labels)), int((sizes - 1).sum())
    if not 0 < count <= most:
        raise ValueError(
            f"Expected argument `held_out` to leave rows to score, and one row of each label to fit, but {share:g} of "
            f"{len(labels)} rows are {count}, of {most} that can be held out ({len(sizes)} labels)"
        )
    held = draw_rows(labels, count, np.random.default_rng(seed), leave=1)
    return np.setdiff1d(np.arange(len(labels)), held), held


def draw_rows(labels: Labels, count: int, rng: np.random.Generator, *, at_least: int = 0, leave: int = 0) -> Labels:
    """Draw ``count`` row numbers, in ascending order, with the `stratified_quotas` of each label."""
    _, places, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    quotas = stratified_quotas(sizes, count, at_least=at_least, leave=leave)
    # Sort a permutation by label, (N,): rows of one label are adjacent, in random order. Take the first of each.
    order = rng.permutation(len(labels))
    order = order[np.argsort(places[order], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < np.repeat(quotas, sizes)])


def stratified_quotas(sizes: Labels, count: int, *, at_least: int = 0, leave: int = 0) -> Labels:
    """Divide ``count`` draws among groups in proportion to their sizes, by the largest remainder.

    The remainders are integers, so that equal ones are exactly equal: the earlier group then comes first.

    Args:
        sizes: ``(C,)`` rows of each group, int64.
        count: Draws in all, between C ``at_least`` and the sum of ``sizes - leave``.
        at_least: Draws that each group gets at least.
        leave: Rows of each group that are not drawn.

    Returns:
        ``(C,)`` int64 draws of each group, with sum ``count``.

    Examples:
        >>> stratified_quotas(np.array([90, 9, 1]), 20, at_least=1)
        array([18,  1,  1])
    """
    low, high, total = at_least, sizes - leave, int(sizes.sum())
    quotas: Labels = np.clip(sizes * count // total, low, high)
    while (left := count - int(quotas.sum())) != 0:
        step = 1 if left > 0 else -1
        free = np.flatnonzero(quotas < high if step > 0 else quotas > low)
        remainders = (sizes * count - quotas * total)[free]  # times the total, to stay an integer
        furthest = np.argsort(-step * remainders, kind="stable")
        quotas[free[furthest[: abs(left)]]] += step
    return quotas
