"""Random batches of classes under a cap per class.

A unit is a sample, or a group of ``samples_per_class`` samples of one class. With ``n_c`` units of class ``c`` and a
cap of ``m``, ``x`` batches can hold ``f(x) = sum_c min(n_c, m x)`` units in all.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def count_batches(units: IntArray, *, size: int, cap: int) -> tuple[int, int]:
    """Return how many full batches the cap allows, and the size of the smaller batch that is left.

    The full batches are the most that any schedule can have, and with the smaller batch no schedule of one
    more batch holds more units. ``units`` int64 ``(C,)`` are the units of each class, ``size >= 1`` the units in a full
    batch, ``cap >= 1`` the most units of one class in a batch. The smaller batch has a size in ``[0, size)``.

    Examples:
        >>> count_batches(np.array([10, 3, 2]), size=4, cap=2)
        (2, 3)
    """

    def room(batches: int) -> int:
        return int(np.minimum(units, cap * batches).sum())

    # f(x) - size * x is concave and 0 at x = 0, so the possible numbers of full batches are 0, 1, ..., full.
    full, above = 0, int(units.sum()) // size + 1
    while above - full > 1:
        middle = (full + above) // 2
        if room(middle) >= size * middle:
            full = middle
        else:
            above = middle
    return full, room(full + 1) - size * full


def draw_batches(units: IntArray, *, size: int, cap: int, rng: np.random.Generator) -> Iterator[IntArray]:
    """Draw the batches of one epoch: the smaller batch first if there is one, then the full ones.

    Each batch first takes the units that later batches cannot hold, then units drawn uniformly at random from the
    rest; draws above the cap are put back. How often two classes share a batch thus depends only on chance and the
    cap, also for classes with few units. A batch is int64 ``(C,)``: its units of each class, each in ``[0, cap]``.

    Examples:
        >>> [int(b.sum()) for b in draw_batches(np.array([10, 3, 2]), size=4, cap=2, rng=np.random.default_rng(0))]
        [3, 4, 4]
    """
    full, rest = count_batches(units, size=size, cap=cap)
    left = np.minimum(units, cap * (full + 1))  # units of a class above this fit into no batch of the epoch
    for later in range(full if rest else full - 1, -1, -1):
        batch = _draw(left, size if later < full else rest, cap=cap, later=later, rng=rng)
        left = left - batch
        yield batch


def _draw(left: IntArray, size: int, *, cap: int, later: int, rng: np.random.Generator) -> IntArray:
    """Draw one batch of ``size`` units from ``left``, with ``later`` full batches still to come after it."""
    # 1. (C,): later batches can hold at most cap * later units of a class; this batch takes all units above that. With
    # f of `left` these are f(later + 1) - f(later) units. They always fit: f(later) fills the later batches, and f is
    # concave with f(0) = 0, so f(x) fills any x of them.
    batch = np.maximum(left - cap * later, 0)
    while missing := size - int(batch.sum()):
        # 2. Number the remaining units of all classes below the cap from 0 to ends[-1] - 1 and draw `missing` of them.
        # A class above the cap is reduced to it and not drawn from again; the loop draws again for the difference.
        ends = np.cumsum(np.where(batch < cap, left - batch, 0))
        drawn = rng.choice(int(ends[-1]), missing, replace=False, shuffle=False)
        classes = np.searchsorted(ends, drawn, side="right")
        batch = np.minimum(batch + np.bincount(classes, minlength=left.size), cap)
    return batch
