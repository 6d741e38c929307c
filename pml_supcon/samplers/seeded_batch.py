"""A batch of indices that carries a seed."""

from collections.abc import Iterable, Sequence

import numpy as np


class SeededBatch(list[int]):
    """The indices of a batch, with a seed for the random draws that create its views.

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
