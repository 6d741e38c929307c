"""Launches of the kernels over rows sorted by label."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pml_supcon.functional.supcon.triton import INTERPRETED, blocks
from pml_supcon.functional.supcon.triton.backward import finish_kernel, gradient_kernel
from pml_supcon.functional.supcon.triton.blocks import GROUP, Layout
from pml_supcon.functional.supcon.triton.forward import losses_kernel, mean_kernel, negatives_kernel, positives_kernel
from pml_supcon.functional.supcon.triton.prepare import prepare_kernel

#: Programs of 4 warps or more that fill a multiprocessor.
PROGRAMS = 2
#: The least number of groups of columns in a split.
GROUPS_OF_SPLIT = 2
#: The largest factor that float16 rows are multiplied by.
LARGEST_FOLD = 512.0


class Side(NamedTuple):
    """Anchors or contrasted rows, in the caller's order and in the order of their labels."""

    given: Tensor  # (n, D) in the caller's order
    order: Tensor  # (n,) int64, places in the caller's order by label
    labels: Tensor  # (n,) int64, sorted
    first: int  # the row of id 0; rows before it have negative ids


class Prepared(NamedTuple):
    """A side as ``prepare_kernel`` stores it."""

    rows: Tensor  # (n, PARTS * WIDTH)
    ids: Tensor  # (n,) int32
    start: Tensor  # (n,) int32
    stop: Tensor  # (n,) int32
    statistics: Tensor | None  # (4, n), None without gradient or anchors
    weights: Tensor | None  # (2, n), None without gradient or anchors


class Launches(NamedTuple):
    """Both sides (the same object if every row is an anchor), and the options of the loss."""

    anchors: Side
    rows: Side
    rank: Tensor | None  # (M,) int64 in the caller's order, None without a cap
    limit: Tensor | None  # (A,) or (M,) int64 of anchors: the cap keeps rows of a lower rank, or of the anchor's own
    dtype: torch.dtype  # of the products
    temperature: float
    normalize: bool
    shifted: bool
    options: dict[str, Any]  # SUMMATION, DENOMINATOR and EXCLUDE_SELF

    @property
    def layout(self) -> Layout:
        """The columns of stored rows: normalised rows with float32 products have two float16 parts."""
        parts = 2 if self.dtype == torch.float32 and self.normalize else 1
        return Layout.of(self.anchors.given.shape[1], parts, self.stored_dtype.itemsize)

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype of the stored rows."""
        return torch.float16 if self.normalize else self.dtype

    @property
    def fold(self) -> float:
        """The factor of stored rows: products of normalised rows are similarities in base 2, ``s log2(e)``."""
        fold = math.sqrt(1 / (self.temperature * math.log(2)))
        return fold if self.normalize and fold <= LARGEST_FOLD else 1.0

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that several kernels share."""
        return {
            **self.layout._asdict(),
            **self.options,
            "GROUP": GROUP,
            "SHIFTED": self.shifted,
            "FOLDED": self.fold != 1,
            "exponent": 1 / (self.temperature * math.log(2)) / self.fold**2,
            "rank_ptr": self.rank,
            "limit_ptr": self.limit,
            "first_id": self.rows.first,
            "first_limit": 0 if self.limit is None or len(self.limit) == len(self.anchors.order) else self.rows.first,
            "STRIDE": 6 if self.options["DENOMINATOR"] == "one_positive" else 4,
        }

    def losses(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses ``(A,)`` and validity ``(A,)`` by id, and the statistics ``(4, A)`` of the sorted anchors."""
        device, number = self.anchors.given.device, len(self.anchors.order)
        losses = torch.empty(number, device=device)
        valid = torch.empty(number, device=device, dtype=torch.bool)
        statistics = losses.new_empty(4, number)
        if number == 0:
            return losses, valid, statistics
        with torch.cuda.device_of(losses):
            x = self.prepare(self.anchors, self.rows)
            y = x if self.rows is self.anchors else self.prepare(self.rows, self.anchors)
            # sums over the negatives of all other tiles, then over the class region; then the losses
            splits, others = self.regions(x, y)
            slots = splits * (1 + others)
            arguments = self.arguments
            sums = losses.new_empty(slots, 2, number)
            positives = losses.new_empty(splits, arguments["STRIDE"], number)
            arguments |= self.pair(x, y) | {"sums_ptr": sums, "positives_ptr": positives, "slots": slots}
            if others:
                blocks.run(negatives_kernel, arguments | {"slot": 0, "CLASSES": False}, splits)
            arguments |= {"slot": slots - splits}
            if self.options["DENOMINATOR"] == "one_positive":  # the sums over positives need those over all negatives
                blocks.run(negatives_kernel, arguments | {"CLASSES": True}, splits)
            blocks.run(positives_kernel, arguments, splits)
            rows = 256
            losses_kernel[(-(-number // rows),)](
                losses, valid, statistics, sums, positives, x.ids, number, slots, splits,
                **{name: arguments[name] for name in ("SUMMATION", "DENOMINATOR", "STRIDE")}, BLOCK_M=rows,
            )  # fmt: skip
        return losses, valid, statistics

    def mean(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean loss of the valid anchors and their number, both ``()``, and the statistics ``(4, A)``."""
        losses, valid, statistics = self.losses()
        mean, number = losses.new_empty(()), losses.new_empty(())
        with torch.cuda.device_of(losses):
            mean_kernel[(1,)](mean, number, losses, valid, len(losses), BLOCK_M=4096, num_warps=8)
        return mean, number, statistics

    def gradients(
        self, statistics: Tensor, upstream: Tensor, for_anchors: bool, for_rows: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of anchors and rows, ``(n, D)``, each empty if it is not requested.

        ``upstream`` ``(A,)`` is in the caller's order; ``()`` if all valid anchors have the same.
        """
        nothing = self.anchors.given.new_empty(0)
        if len(self.anchors.order) == 0:  # no pair has a gradient
            return (
                torch.zeros_like(self.anchors.given, memory_format=torch.contiguous_format) if for_anchors else nothing,
                torch.zeros_like(self.rows.given, memory_format=torch.contiguous_format) if for_rows else nothing,
            )
        with torch.cuda.device_of(upstream):
            largest = torch.linalg.vector_norm(upstream, math.inf) if upstream.ndim else upstream
            x = self.prepare(self.anchors, self.rows, statistics, upstream, largest)
            y = x if self.rows is self.anchors else self.prepare(self.rows, self.anchors)
            return (
                self.gradient(self.anchors, x, y, largest) if for_anchors else nothing,
                self.gradient(self.rows, y, x, largest) if for_rows else nothing,
            )

    def gradient_of_own_rows(self, statistics: Tensor, upstream: Tensor) -> Tensor:
        """Return the gradient ``(A, D)`` of the anchors from their pairs with all rows, which are all anchors too.

        ``statistics`` ``(4, M)`` and ``upstream`` ``(M,)`` are in the order of the rows.
        """
        first, order = self.rows.first, self.anchors.order
        if len(order) == 0:
            return torch.empty(self.anchors.given.shape, device=upstream.device)
        with torch.cuda.device_of(upstream):
            largest = torch.linalg.vector_norm(upstream, math.inf)
            by_label = (statistics.index_select(1, places) for places in (order + first, self.rows.order))
            x = self.prepare(self.anchors, self.rows, next(by_label), upstream[first:], largest)
            y = self.prepare(self.rows, self.anchors, next(by_label), upstream, largest)
            return self.gradient(self.anchors, x, y, largest, torch.float32)

    def gradient(
        self, side: Side, x: Prepared, y: Prepared, largest: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return the gradient ``(n, D)`` of the side x from its pairs with y, by default in the dtype of its rows."""
        layout, number = self.layout, len(x.ids)
        gradient = torch.empty(side.given.shape, device=side.given.device, dtype=dtype or side.given.dtype)
        if number == 0:
            return gradient
        slices = layout.WIDTH // layout.BLOCK_D
        splits, others = self.regions(x, y, slices)
        partial = torch.empty(splits, number, layout.WIDTH, device=side.given.device)
        arguments = self.arguments | self.pair(x, y)
        arguments |= {
            "partial_ptr": partial,
            "x_statistics_ptr": x.statistics,
            "x_weights_ptr": x.weights,
            "y_statistics_ptr": y.statistics,
            "y_weights_ptr": y.weights,
        }
        # all other tiles, then the class region adds to them; then the sum of the splits, through the normalisation
        if others:
            blocks.run(gradient_kernel, arguments | {"CLASSES": False, "ADD": False}, splits, slices)
        own = min(layout.BLOCK_D, blocks.CLASS_COLUMNS)
        arguments |= {"CLASSES": True, "ADD": others, "BLOCK_D": own}
        blocks.run(gradient_kernel, arguments, splits, layout.WIDTH // own)
        rows, columns = rows_and_columns(layout.WIDTH)
        finish_kernel[(-(-number // rows),)](
            gradient, partial, side.given, side.order, largest, *side.given.stride(), number, splits,
            1 / (self.temperature * self.fold), layout.COLUMNS, layout.WIDTH, self.normalize,
            BLOCK_M=rows, BLOCK_N=columns,
        )  # fmt: skip
        return gradient

    def prepare(
        self,
        side: Side,
        other: Side,
        statistics: Tensor | None = None,
        upstream: Tensor | None = None,
        largest: Tensor | None = None,
    ) -> Prepared:
        """Return a side in the order of its labels; with an upstream gradient also the weights of the anchors."""
        layout, device, number = self.layout, side.given.device, len(side.order)
        stored = torch.empty(number, layout.PARTS * layout.WIDTH, device=device, dtype=self.stored_dtype)
        # each aligned: Triton compiles a kernel again for another alignment
        ids, start, stop = (torch.empty(number, device=device, dtype=torch.int32) for _ in range(3))
        weights = None if upstream is None else torch.empty(2, number, device=device)
        rows, columns = rows_and_columns(layout.WIDTH)
        if number > 0:
            prepare_kernel[(-(-number // rows),)](
                stored, ids, start, stop, side.given, side.order, side.labels, other.labels, upstream, largest,
                statistics, weights, *side.given.stride(), int(upstream is not None and upstream.ndim > 0), number,
                len(other.labels), side.first,
                len(other.labels).bit_length(), self.fold, layout.COLUMNS, layout.WIDTH, layout.PARTS,
                self.normalize, self.shifted, BLOCK_M=rows, BLOCK_N=columns,
            )  # fmt: skip
        return Prepared(stored, ids, start, stop, statistics, weights)

    def regions(self, x: Prepared, y: Prepared, slices: int = 1) -> tuple[int, bool]:
        """Return in how many splits the columns are divided, and whether there are tiles outside the class region.

        Splits fill the device if there are few rows of x. Their number depends on the sizes and the device alone.
        """
        blocks_of_x, groups_of_y = -(-len(x.ids) // GROUP), len(y.ids) // GROUP
        wanted = PROGRAMS * multiprocessors(x.rows.device.index) // (blocks_of_x * slices)
        return max(1, min(wanted, groups_of_y // GROUPS_OF_SPLIT)), groups_of_y > 0

    @staticmethod
    def pair(x: Prepared, y: Prepared) -> dict[str, Any]:
        """Return the arguments of a kernel over the pairs of two sides."""
        return {
            "x_ptr": x.rows,
            "y_ptr": y.rows,
            "x_ids_ptr": x.ids,
            "y_ids_ptr": y.ids,
            "start_ptr": x.start,
            "stop_ptr": x.stop,
            "num_x": len(x.ids),
            "num_y": len(y.ids),
        }


def rows_and_columns(width: int) -> tuple[int, int]:
    """Return the block of a kernel that goes over the rows once: 4,096 numbers."""
    columns = min(triton.next_power_of_2(width), 1024)
    return 4096 // columns, columns


@lru_cache
def multiprocessors(device: int | None) -> int:
    """Return the number of multiprocessors of a device; few in the interpreter, where small batches are split too."""
    if INTERPRETED:
        return 4
    count: int = triton.runtime.driver.active.utils.get_device_properties(device)["multiprocessor_count"]
    return count
