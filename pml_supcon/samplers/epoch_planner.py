"""The plan of one epoch: the samples of each batch, drawn under a cap per class, and the samples left out.

A unit is a sample, or a group of ``samples_per_class`` samples of one class. With ``n_c`` units of class ``c`` and a
cap of ``m``, ``x`` batches can hold ``f(x) = sum_c min(n_c, m x)`` units in all.
"""

from collections.abc import Iterator

import numpy as np

from pml_supcon.samplers.batch_shape import BatchShape
from pml_supcon.samplers.label_arrays import IntArray


class EpochPlanner:
    """A planner of epochs whose batches hold a limited or a fixed number of samples of a class.

    ``MultiViewBatchSampler`` describes the modes and the errors.

    Args:
        codes: ``(n,)`` int64, the class of each sample, ``0..C-1``.
        shape: Size and limit of a batch.

    Attributes:
        full: Full batches in an epoch.
        rest: Samples in the smaller batch after them, 0 where there is none.
        without_group: Samples that are left over when the classes are cut into groups.
        above_limit: Samples of frequent classes that the limit leaves out of every batch.
    """

    def __init__(self, codes: IntArray, shape: BatchShape) -> None:
        # without a limit, a plain shuffle: all are one class
        self._codes = codes if shape.limit else np.zeros_like(codes)
        self._unit, self._size = shape.unit, shape.units
        self._cap = self._size if shape.cap is None else shape.cap
        self._counts = np.bincount(self._codes)  # (C,): samples of each class
        self._units = self._counts // self._unit  # (C,): whole units of each class
        shape.check_room(self._units)
        self.full, rest = count_batches(self._units, size=self._size, cap=self._cap)
        self.rest = rest * self._unit
        self.without_group = int((self._counts % self._unit).sum())
        self.above_limit = codes.size - self.without_group - self.full * shape.samples - self.rest

    def left_out(self, *, rest_dropped: bool) -> tuple[int, str]:
        """Return how many samples an epoch leaves out, and the reasons in words."""
        reasons = self.without_group, self.above_limit, self.rest if rest_dropped else 0
        text = (
            "in each epoch, drawn anew: %d in incomplete groups, %d of classes too frequent for the limit, "
            "%d in the last, smaller batch."
        )
        return sum(reasons), text % reasons

    def plan(self, rng: np.random.Generator) -> list[IntArray]:
        """Return the indices of each batch of one epoch: the full batches, then the smaller one, if any."""
        # 1. (n,): all samples, class by class, each class shuffled
        order = rng.permutation(self._codes.size)
        order = order[np.argsort(self._codes[order], kind="stable")]
        heads = np.cumsum(self._counts) - self._counts  # (C,): start of the unused samples of each class
        batches = []
        # 2. for each batch the number of samples of each class, (C,), then the next unused samples of these classes
        for units in draw_batches(self._units, size=self._size, cap=self._cap, rng=rng):
            counts = units * self._unit
            starts = heads - (np.cumsum(counts) - counts)
            batches.append(rng.permutation(order[np.repeat(starts, counts) + np.arange(counts.sum())]))
            heads = heads + counts
        smaller, full = batches[: bool(self.rest)], batches[bool(self.rest) :]
        # 3. batches drawn last hold more of the frequent classes: shuffle the full ones, so that all places in the
        # epoch have the same distribution
        return [full[i] for i in rng.permutation(self.full)] + smaller


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
    # 1. (C,): later batches can hold at most cap * later units of a class; this batch takes all units above that. Their
    # number is f(later + 1) - f(later), with f computed from `left`. It is at most `size`: f(later + 1) is `size` plus
    # the units of the later batches, and f(later) is at least the latter, because f is concave and f(0) = 0.
    batch = np.maximum(left - cap * later, 0)
    while missing := size - int(batch.sum()):
        # 2. Number the remaining units of all classes below the cap from 0 to ends[-1] - 1 and draw `missing` of them.
        # A class above the cap is reduced to it and not drawn from again; the loop draws again for the difference.
        ends = np.cumsum(np.where(batch < cap, left - batch, 0))
        drawn = rng.choice(int(ends[-1]), missing, replace=False, shuffle=False)
        classes = np.searchsorted(ends, drawn, side="right")
        batch = np.minimum(batch + np.bincount(classes, minlength=left.size), cap)
    return batch
