"""Which classes a batch holds: units of classes dealt to batches at random, under a cap per class.

A unit is what is dealt as one: a sample, or a group of `samples_per_class` samples of one class. Nothing here
knows which. With `n_c` units of class `c` and a cap of `m`, `x` batches can hold `f(x) = sum_c min(n_c, m x)`
units in all.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def count_batches(units: IntArray, *, size: int, cap: int) -> tuple[int, int]:
    """Return how many full batches the cap allows, and the size of the smaller batch that is left.

    The full batches are the most that any schedule can have, and with the smaller batch no schedule of one
    more batch holds more units.

    Args:
        units: int64 `(C,)`, the units of each class, `>= 0`.
        size: Units in a full batch, `>= 1`.
        cap: Most units of one class in a batch, `>= 1`.

    Returns:
        `(full, rest)` with `0 <= rest < size`; `rest` is 0 where there is no smaller batch.

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
    """Deal the batches of one epoch: the smaller batch first where there is one, then the full ones.

    Each batch takes first what it must, so that the later batches stay possible, then units drawn uniformly
    at random from all that are left, where a draw above the cap is put back. Two classes therefore share a
    batch as often as chance and the cap have it, however few units they have.

    Args:
        units: int64 `(C,)`, the units of each class; not changed.
        size: Units in a full batch.
        cap: Most units of one class in a batch.
        rng: The source of chance.

    Yields:
        int64 `(C,)`: the units that the batch takes from each class, each in `[0, cap]`.

    Examples:
        >>> [int(b.sum()) for b in draw_batches(np.array([10, 3, 2]), size=4, cap=2, rng=np.random.default_rng(0))]
        [3, 4, 4]
    """
    full, rest = count_batches(units, size=size, cap=cap)
    left = np.minimum(units, cap * (full + 1))  # what a class has above this has no place in this epoch
    for later in range(full if rest else full - 1, -1, -1):
        batch = _draw(left, size if later < full else rest, cap=cap, later=later, rng=rng)
        left = left - batch
        yield batch


def _draw(left: IntArray, size: int, *, cap: int, later: int, rng: np.random.Generator) -> IntArray:
    """Draw one batch of `size` units from `left`, with `later` full batches still to come after it."""
    # The later batches can take only cap * later units of a class: what is above goes now. With f made of
    # `left` that is f(later + 1) - f(later) units, and they fit, for f(later) is enough for the later
    # batches. Then f(later) is just all that is left; f is 0 at 0 and concave, so f(x) is enough for any x of
    # them, and so it goes on.
    batch = np.maximum(left - cap * later, 0)
    while missing := size - int(batch.sum()):
        # A class below the cap offers all it has left. Drawn above the cap it is cut back; then it is full.
        ends = np.cumsum(np.where(batch < cap, left - batch, 0))
        drawn = rng.choice(int(ends[-1]), missing, replace=False, shuffle=False)
        classes = np.searchsorted(ends, drawn, side="right")
        batch = np.minimum(batch + np.bincount(classes, minlength=left.size), cap)
    return batch
