"""The size of a batch and its limit, checked."""

from typing import NamedTuple

import numpy as np

from pml_supcon._checks import check_int, shown
from pml_supcon.samplers.label_arrays import IntArray


class BatchShape(NamedTuple):
    """The size of a batch in samples and in units, and its limit.

    A unit is a sample, or a group of ``samples_per_class`` samples of one class.

    Attributes:
        samples: Samples in a full batch.
        unit: Samples in a unit.
        cap: Most units of one class in a batch, or None without a limit.
        limit: Argument that limits the batch, for errors; empty without a limit.
        grouped: True with ``samples_per_class``.
    """

    samples: int
    unit: int
    cap: int | None
    limit: str
    grouped: bool = False

    @property
    def units(self) -> int:
        """Units in a full batch."""
        return self.samples // self.unit

    def check_room(self, units: IntArray) -> None:
        """Raise unless a full batch fits, given the units of each class, ``(C,)``.

        Raises:
            ValueError: If the limit does not allow the batch size.
        """
        largest = int(np.minimum(units, self.samples if self.cap is None else self.cap).sum()) * self.unit
        if self.limit and self.samples > largest:
            raise ValueError(
                f"Expected argument `batch_size` to be at most {largest}, the most that {self.limit} allows with "
                f"{int((units > 0).sum())} classes of {self.unit} samples or more, but got {self.samples}"
            )


def read_shape(batch_size: int, *, max_per_class: int | None, samples_per_class: int | None) -> BatchShape:
    """Return the shape that the arguments of ``MultiViewBatchSampler`` describe.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If one is out of range, both limits are given, or ``samples_per_class`` does not divide
            ``batch_size``.
    """
    batch_size = check_int("batch_size", batch_size, low=1)
    if max_per_class is not None and samples_per_class is not None:
        raise ValueError(
            f"Expected at most one of `max_per_class` and `samples_per_class`, "
            f"but got {shown(max_per_class)} and {shown(samples_per_class)}"
        )
    if samples_per_class is not None:
        unit, limit = check_int("samples_per_class", samples_per_class, low=1), f"samples_per_class={samples_per_class}"
        if batch_size % unit:
            raise ValueError(f"Expected argument `batch_size` to be a multiple of {limit}, but got {batch_size}")
        return BatchShape(batch_size, unit, 1, limit, grouped=True)
    if max_per_class is not None:
        cap = check_int("max_per_class", max_per_class, low=1)
        return BatchShape(batch_size, 1, cap, f"max_per_class={max_per_class}")
    return BatchShape(batch_size, 1, None, "")
