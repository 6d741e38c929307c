"""The tiled forward and backward passes as two custom ops, which ``torch.compile`` does not look into.

A custom op takes flat tensors and numbers only: the caller takes a ``Layout`` apart, ``rebuild`` puts it together.
"""

from collections.abc import Sequence
from functools import partial, reduce

import torch
from torch import Tensor

from pml_supcon.functional.supcon.custom_ops import register_backward
from pml_supcon.functional.supcon.problem import Cap
from pml_supcon.functional.supcon.tiled.layout import Layout, Tile
from pml_supcon.functional.supcon.tiled.passes import TilePasses
from pml_supcon.functional.supcon.tiled.statistics import Statistics
from pml_supcon.functional.supcon.tiled.threads import map_in_threads


@torch.library.custom_op("pml_supcon::tiled_losses", mutates_args=())
def tiled_losses(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses ``(A,)``, their validity ``(A,)`` and the table ``(5, A)`` of ``Statistics`` of sorted anchors.

    Args:
        anchors: ``(A, D)``, sorted by label and divided by the root of the temperature.
        rows: ``(M, D)``, as ``anchors``; None: the anchors are the rows.
        anchor_labels: this and the next six are the fields of a ``Layout``.
        row_labels: see ``Layout``.
        anchor_ids: see ``Layout``.
        row_ids: see ``Layout``.
        anchor_rank: see ``Cap``.
        anchor_limit: see ``Cap``.
        row_rank: see ``Cap``.
        summation: "out" or "in".
        denominator: "all", "one_positive" or "negatives".
        shifted: compute with logarithms, because ``exp(s)`` could overflow.
    """
    layout = rebuild(rows, anchor_labels, row_labels, anchor_ids, row_ids, anchor_rank, anchor_limit, row_rank)
    passes = TilePasses(anchors, anchors if rows is None else rows, layout, anchors.dtype, shifted)
    tiles = list(layout.tiles())
    # 1. log of the sum over N(i) of exp(s_in), (A,), over all tiles; each thread returns a partial sum
    log_neg = torch.stack(map_in_threads(passes.log_negatives, tiles, anchors.device)).logsumexp(dim=0)
    # 2. sums over P(i), over the boxes of tiles that can hold positives; off the diagonal a box serves both sides
    start = Statistics.of(log_neg, summation, denominator)
    boxes = [(box, layout.symmetric and tile[0] != tile[1]) for tile, tile_boxes in tiles for box in tile_boxes]
    positives = partial(passes.positives, start)
    statistics = Statistics.merged(map_in_threads(positives, boxes, anchors.device))
    # 3. equation 2 or 3 from the sums
    losses, valid = statistics.losses()
    return losses, valid, statistics.table


@torch.library.custom_op("pml_supcon::tiled_gradient", mutates_args=())
def tiled_gradient(
    upstream: Tensor,
    table: Tensor,
    for_anchors: bool,
    for_rows: bool,
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
) -> tuple[Tensor, Tensor]:
    """Return the gradients of anchors ``(A, D)`` and rows ``(M, D)``: ``dL/dz = W z``, tile by tile.

    ``W_ij`` is ``u_i d l_i / d s_ij``, and with symmetry plus ``u_j d l_j / d s_ji``, with ``u`` the upstream gradient
    ``(A,)``, which is 0 for invalid anchors. A gradient that is not requested is empty; the gradient of rows is also
    empty if they are the anchors. The other arguments are those of ``tiled_losses``.
    """
    layout = rebuild(rows, anchor_labels, row_labels, anchor_ids, row_ids, anchor_rank, anchor_limit, row_rank)
    passes = TilePasses(anchors, anchors if rows is None else rows, layout, anchors.dtype, shifted)
    statistics = Statistics(table, summation, denominator)
    # divide by the largest upstream gradient, lest tiny ones underflow in the product with exp(-log_neg)
    scale = upstream_scale(upstream)
    upstream = upstream / scale
    # (A,): the factor of exp(s_ij) in W_ij of a negative
    weight = statistics.negative_weight(upstream, shifted=shifted)

    # each thread adds up the products W z of its tiles in buffers of its own
    def gradients(tiles: Sequence[tuple[Tile, list[Tile]]]) -> list[Tensor | None]:
        grad_anchors = torch.zeros_like(anchors) if for_anchors else None
        grad_rows = torch.zeros_like(rows) if rows is not None and for_rows else None
        both = grad_anchors if rows is None else grad_rows
        passes.gradients(tiles, statistics, upstream, weight, grad_anchors, both)
        return [grad_anchors, grad_rows]

    # add the threads' buffers and undo the scale
    parts = map_in_threads(gradients, list(layout.tiles()), anchors.device)
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


def rebuild(
    rows: Tensor | None,
    anchor_labels: Tensor,
    row_labels: Tensor,
    anchor_ids: Tensor | None,
    row_ids: Tensor | None,
    anchor_rank: Tensor | None,
    anchor_limit: Tensor | None,
    row_rank: Tensor | None,
) -> Layout:
    """Return the layout from the flat arguments of a custom op."""
    cap = None
    if anchor_rank is not None and anchor_limit is not None and row_rank is not None:
        cap = Cap(anchor_rank, anchor_limit, row_rank)
    return Layout(anchor_labels, row_labels, anchor_ids, row_ids, cap, symmetric=rows is None)


register_backward(tiled_losses, tiled_gradient, num_tensors=9, num_statistics=5, backend="tiled")
for _operator in (tiled_losses, tiled_gradient):
    for _device in ("cpu", "cuda"):  # autocast is off inside; float64 stays
        _operator.register_autocast(_device, torch.float32)
