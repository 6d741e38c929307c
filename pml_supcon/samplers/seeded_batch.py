"""A batch of sample indices with a seed for its views."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


class SeededBatch(list[int]):
    """The indices of a batch, with a seed for the random draws that create its views.

    A slice has a seed of its own, which depends on the batch and the place of the slice: Accelerate's ``split_batches``
    gives each process a slice.

    Args:
        indices: Indices of the samples.
        place: Integers ``>= 0`` that identify the batch.

    Attributes:
        seed: Integer in ``[0, 2^63)`` that depends only on ``place``.

    Examples:
        >>> SeededBatch([4, 2], (0, 1)) == [4, 2], SeededBatch([4, 2], (0, 1)).seed == SeededBatch([], (0, 1)).seed
        (True, True)
    """

    def __init__(self, indices: Iterable[int], place: Sequence[int]) -> None:
        super().__init__(indices)
        self.seed = int(np.random.SeedSequence(list(place)).generate_state(1, np.uint64)[0] >> 1)

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        if not isinstance(index, slice):
            return part
        start, stop, step = index.indices(len(self))
        return SeededBatch(part, (self.seed, start, stop, step % 2**32))

    def __add__(self, other: Any) -> "SeededBatch":  # type: ignore[override]  # indices only
        return SeededBatch([*self, *other], (self.seed, len(self), len(other)))
