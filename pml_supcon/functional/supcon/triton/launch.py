"""Launches of the kernels over rows sorted by label."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pml_supcon.functional.supcon.triton.backward import gradient_kernel
from pml_supcon.functional.supcon.triton.blocks import columns
from pml_supcon.functional.supcon.triton.forward import negatives_kernel, positives_kernel

#: Precision of float32 products: "ieee" is exact, "tf32x3" nearly so on tensor cores, "tf32" keeps 10 bits.
FLOAT32_PRODUCTS = "ieee"

#: The largest weight of a pair in float16, whose range is small: the upstream gradient is scaled to it.
FLOAT16_WEIGHT = 2.0**14


class Side(NamedTuple):
    """Anchors or contrasted rows in the order of their labels."""

    rows: Tensor  # (n, D) in the dtype of the products
    ids: Tensor  # (n,) int32, places in the caller's order, counted from the first row that is an anchor (`first`)
    start: Tensor  # (n,) int32, with `stop`: the other side's rows from `start` to `stop` have the row's label
    stop: Tensor  # (n,) int32


Given = tuple[Tensor, Tensor]  # of a side whose rows are anchors: statistics (4, n), and the upstream gradient (n,)


class Launches(NamedTuple):
    """Both sides (the same object if every row is an anchor), and the arguments of the kernels."""

    anchors: Side
    rows: Side
    rank: Tensor | None  # (M,) int32 in the caller's order, None without a cap
    limit: Tensor | None  # (A,) int32 by id: the cap keeps rows whose rank is lower, or equal to the anchor's
    first: int  # index of the first anchor among the rows; rows before it have negative ids
    temperature: float
    options: dict[str, Any]  # the kernels' constants by name, without `BLOCK_K` and `BLOCK_D`

    def losses(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses ``(A,)`` and validity ``(A,)`` by id, and the statistics ``(4, A)`` of the sorted anchors."""
        x, y = self.anchors, self.rows
        losses = torch.empty(x.ids.shape, device=x.ids.device, dtype=torch.float32)
        valid = torch.empty_like(losses, dtype=torch.bool)
        statistics = losses.new_empty(4, len(losses))
        # fill log_neg, then from it the losses and the other statistics
        self.launch(negatives_kernel, x, y, statistics_ptr=statistics)
        self.launch(positives_kernel, x, y, losses_ptr=losses, valid_ptr=valid, statistics_ptr=statistics)
        return losses, valid, statistics

    def gradient(self, x: Side, y: Side, statistics: Tensor, upstream: Tensor) -> Tensor:
        """Return the gradient ``(n, D)``, by id, of x from its pairs with y; ``upstream`` ``(A,)`` is sorted."""
        # the sides that are anchors contribute their losses' gradient
        given = [(statistics, upstream) if side is self.anchors else None for side in (x, y)]
        return self.gradient_of_pairs(x, y, *given)

    def gradient_of_pairs(self, x: Side, y: Side, x_given: Given | None, y_given: Given | None) -> Tensor:
        """Return the gradient ``(n, D)``, by id, of x from its pairs with y, for the losses of the sides with given.

        A side's statistics ``(4, n)`` and upstream gradient ``(n,)`` are sorted like its rows.
        """
        statistics, upstream = ([None if given is None else given[i] for given in (x_given, y_given)] for i in (0, 1))
        # float16 weights would underflow: scale the largest upstream gradient to 2^14, and back at the end
        scale = None
        if x.rows.dtype == torch.float16 and len(x.ids) > 0:
            largest = [part.abs().amax() for part in upstream if part is not None and len(part) > 0]
            scale = FLOAT16_WEIGHT / torch.stack(largest).amax().clamp(min=1e-30)
            upstream = [None if part is None else part * scale for part in upstream]
        # the pointers of a side that is no anchors are None
        gradient = torch.empty(x.rows.shape, device=x.rows.device, dtype=torch.float32)
        self.launch(
            gradient_kernel,
            x,
            y,
            gradient_ptr=gradient if x is self.anchors else gradient[self.first :],
            x_statistics_ptr=statistics[0],
            x_upstream_ptr=upstream[0],
            y_statistics_ptr=statistics[1],
            y_upstream_ptr=upstream[1],
        )
        return gradient if scale is None else gradient.div_(scale)

    def launch(self, kernel: Any, x: Side, y: Side, **pointers: Tensor | None) -> None:
        """Run a kernel over all rows of x, with the arguments that it takes."""
        width = x.rows.shape[1]
        arguments: dict[str, Any] = {
            **pointers,
            "x_ptr": x.rows,
            "y_ptr": y.rows,
            "x_ids_ptr": x.ids,
            "y_ids_ptr": y.ids,
            "start_ptr": x.start,
            "stop_ptr": x.stop,
            "rank_ptr": None if self.rank is None else self.rank[self.first :],
            "limit_ptr": self.limit,
            "num_x": len(x.ids),
            "num_y": len(y.ids),
            "inverse_temperature": 1 / self.temperature,
            "WIDTH": width,
            **columns(width, x.rows.element_size()),
            "PRECISION": FLOAT32_PRODUCTS,
            **self.options,
        }
        arguments = {name: value for name, value in arguments.items() if name in kernel.arg_names}
        # grid: blocks of BLOCK_M rows, by slices of BLOCK_D columns
        slices = -(-width // arguments.get("BLOCK_D", width))
        if len(x.ids) > 0:
            with torch.cuda.device_of(x.rows):
                kernel[lambda meta: (-(-len(x.ids) // meta["BLOCK_M"]), slices)](**arguments)
