"""The tiled forward and backward passes as two custom ops, which ``torch.compile`` does not look into.

A custom op takes flat tensors and numbers only: the caller takes a ``Layout`` apart, ``passes_of`` puts it together.
"""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from pml_supcon.functional.supcon.custom_ops import register_backward
from pml_supcon.functional.supcon.problem import Cap
from pml_supcon.functional.supcon.tiled.layout import Layout, Tile
from pml_supcon.functional.supcon.tiled.passes import TilePasses
from pml_supcon.functional.supcon.tiled.statistics import Statistics
from pml_supcon.functional.supcon.tiled.threads import map_in_threads

#: The arguments of ``passes_of``, which both ops take.
ARGUMENTS = """
    Tensor anchors, Tensor? rows, Tensor anchor_labels, Tensor row_labels, Tensor? anchor_ids, Tensor? row_ids,
    Tensor? anchor_rank, Tensor? anchor_limit, Tensor? row_rank, str summation, str denominator, bool shifted
"""


@torch.library.custom_op(
    "pml_supcon::tiled_losses", mutates_args=(), schema=f"({ARGUMENTS}) -> (Tensor, Tensor, Tensor)"
)
def tiled_losses(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses ``(A,)``, their validity ``(A,)`` and the table ``(5, A)`` of ``Statistics`` of sorted anchors."""
    passes, summation, denominator = passes_of(*arguments)
    layout, device = passes.layout, arguments[0].device
    tiles = list(layout.tiles())
    # 1. log of the sum over N(i) of exp(s_in), (A,), over all tiles; each thread returns a partial sum
    log_neg = torch.stack(map_in_threads(passes.log_negatives, tiles, device)).logsumexp(dim=0)
    # 2. sums over P(i), over the boxes of tiles that can hold positives; off the diagonal a box serves both sides
    start = Statistics.of(log_neg, summation, denominator)
    boxes = [(box, layout.symmetric and tile[0] != tile[1]) for tile, tile_boxes in tiles for box in tile_boxes]
    statistics = Statistics.merged(map_in_threads(partial(passes.positives, start), boxes, device))
    # 3. equation 2 or 3 from the sums
    losses, valid = statistics.losses()
    return losses, valid, statistics.table


@torch.library.custom_op(
    "pml_supcon::tiled_gradient",
    mutates_args=(),
    schema=f"(Tensor upstream, Tensor table, bool for_anchors, bool for_rows, {ARGUMENTS}) -> (Tensor, Tensor)",
)
def tiled_gradient(
    upstream: Tensor, table: Tensor, for_anchors: bool, for_rows: bool, anchors: Tensor, rows: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Return the gradients of anchors ``(A, D)`` and rows ``(M, D)``: ``dL/dz = W z``, tile by tile.

    ``W_ij`` is ``u_i d l_i / d s_ij``, and with symmetry plus ``u_j d l_j / d s_ji``, with ``u`` the upstream gradient
    ``(A,)``, which is 0 for invalid anchors. A gradient that is not requested is empty; the gradient of rows is also
    empty if they are the anchors.
    """
    passes, summation, denominator = passes_of(anchors, rows, *rest)
    statistics = Statistics(table, summation, denominator)
    # divide by the largest upstream gradient, lest tiny ones underflow in the product with exp(-log_neg)
    scale = upstream_scale(upstream)
    upstream = upstream / scale
    # (A,): the factor of exp(s_ij) in W_ij of a negative
    weight = statistics.negative_weight(upstream, shifted=passes.shifted)

    # each thread adds up the products W z of its tiles in buffers of its own
    def gradients(tiles: Sequence[tuple[Tile, list[Tile]]]) -> list[Tensor | None]:
        grad_anchors = torch.zeros_like(anchors) if for_anchors else None
        grad_rows = torch.zeros_like(rows) if rows is not None and for_rows else None
        both = grad_anchors if rows is None else grad_rows
        passes.gradients(tiles, statistics, upstream, weight, grad_anchors, both)
        return [grad_anchors, grad_rows]

    # add the threads' buffers and undo the scale
    parts = map_in_threads(gradients, list(passes.layout.tiles()), anchors.device)
    of_anchors, of_rows = (
        anchors.new_empty(0) if first is None else reduce(Tensor.add_, others, first).mul_(scale)
        for first, *others in zip(*parts, strict=True)
    )
    return of_anchors, of_rows


def upstream_scale(upstream: Tensor) -> Tensor:
    """Return the largest magnitude of an upstream gradient ``(A,)``, or 1 if it is 0 or not finite."""
    if len(upstream) == 0:
        return upstream.new_ones(())
    largest = upstream.abs().amax()
    return torch.where(largest.isfinite() & (largest > 0), largest, 1)


def passes_of(
    anchors: Tensor,
    rows: Tensor | None,
    anchor_labels: Tensor,
    row_labels: Tensor,
    anchor_ids: Tensor | None,
    row_ids: Tensor | None,
    anchor_rank: Tensor | None,
    anchor_limit: Tensor | None,
    row_rank: Tensor | None,
    summation: str,
    denominator: str,
    shifted: bool,
) -> tuple[TilePasses, str, str]:
    """Return the passes, the summation and the denominator from the flat arguments of a custom op.

    ``anchors`` ``(A, D)`` and ``rows`` ``(M, D)`` are sorted by label and divided by the root of the temperature; rows
    are None if the anchors are the rows. The tensors after them are the fields of ``Layout`` and ``Cap``. ``shifted``
    is true if ``exp(s)`` could overflow.
    """
    cap = None
    if anchor_rank is not None and anchor_limit is not None and row_rank is not None:
        cap = Cap(anchor_rank, anchor_limit, row_rank)
    layout = Layout(anchor_labels, row_labels, anchor_ids, row_ids, cap, symmetric=rows is None)
    passes = TilePasses(anchors, anchors if rows is None else rows, layout, anchors.dtype, shifted)
    return passes, summation, denominator


register_backward(tiled_losses, tiled_gradient, num_tensors=9, num_statistics=5, backend="tiled")
for _operator in (tiled_losses, tiled_gradient):
    for _device in ("cpu", "cuda"):  # autocast is off inside; float64 stays
        _operator.register_autocast(_device, torch.float32)
