"""Exact in linear memory on any device, in plain torch: tiles of similarities are made, used and dropped.

Rows are sorted by label, so that on the CPU only few tiles hold positives. A tile without them costs a product, one
exponential per pair and its sums. Where rows are contrasted with themselves a tile serves its rows and its columns. The
forward pass keeps sums per anchor; the backward pass makes the tiles again. Both are operators of their own to
`torch.compile`, which does not look into them.
"""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from pml_supcon.functional.supcon import reference
from pml_supcon.functional.supcon.problem import AnchorLosses, Cap, Problem
from pml_supcon.functional.supcon.tiled import listed
from pml_supcon.functional.supcon.tiled.layout import Layout, Tile
from pml_supcon.functional.supcon.tiled.passes import Passes
from pml_supcon.functional.supcon.tiled.statistics import Statistics
from pml_supcon.functional.supcon.tiled.threads import shared_out

#: `exp(s)` and its sums stay well inside float32 and float64 without a shift up to this `|s|`.
SAFE_EXPONENT = {torch.float32: 60.0, torch.float64: 500.0}


def refusal(problem: Problem) -> str | None:
    """Why this backend cannot solve the problem, or None."""
    if problem.similarity is not None:
        return "a similarity other than the dot product needs the whole matrix"
    return problem.transformed


def anchor_losses(problem: Problem) -> AnchorLosses:
    """Per-anchor losses in `O(N D)` extra memory; differentiable once.

    Listed pairs take memory linear in their number; lists as long as the matrix is large become the matrix.
    """
    if problem.pairs is not None:
        return listed.anchor_losses(problem) if listed.worthwhile(problem) else reference.anchor_losses(problem)
    layout, anchor_order, row_order = Layout.of(problem)
    rows = evenly_scaled(problem.rows[row_order], problem.temperature)
    losses, valid, _ = tiled_losses(
        rows if layout.symmetric else evenly_scaled(problem.anchors[anchor_order], problem.temperature),
        None if layout.symmetric else rows,
        layout.anchor_labels,
        layout.row_labels,
        layout.anchor_ids,
        layout.row_ids,
        *(layout.cap or (None, None, None)),
        problem.summation,
        problem.denominator,
        not problem.bound <= SAFE_EXPONENT[rows.dtype],
    )
    back = torch.argsort(anchor_order)
    return AnchorLosses(losses[back], valid[back])


def evenly_scaled(rows: Tensor, temperature: float) -> Tensor:
    """Rows whose products are similarities, so that either side of a product can be the other."""
    scaled: Tensor = rows * temperature**-0.5
    return scaled


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
    """Losses `(A,)`, their validity `(A,)` and the table of `Statistics` of sorted anchors `(A, D)`.

    `rows` is None where the anchors are the rows; `shifted` says that similarities may leave the exponent's safe range.
    The others are the fields of a `Layout` and the options.
    """
    layout = rebuild(rows, anchor_labels, row_labels, anchor_ids, row_ids, anchor_rank, anchor_limit, row_rank)
    passes = Passes(anchors, anchors if rows is None else rows, layout, anchors.dtype, shifted)
    tiles = list(layout.tiles())
    log_neg = torch.stack(shared_out(passes.log_negatives, tiles, anchors.device)).logsumexp(dim=0)
    start = Statistics.of(log_neg, summation, denominator)
    boxes = [(box, layout.symmetric and tile[0] != tile[1]) for tile, found in tiles for box in found]
    positives = partial(passes.positives, start)
    statistics = Statistics.merged(shared_out(positives, boxes, anchors.device))
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
    """The gradients of anchors and rows, `dL/dz = W z` tile by tile, `W_ij` the weight of the pair for both its ends.

    `upstream` `(A,)` is 0 for invalid anchors. A gradient that is not asked for is empty, and so is that of the rows
    where they are the anchors.
    """
    layout = rebuild(rows, anchor_labels, row_labels, anchor_ids, row_ids, anchor_rank, anchor_limit, row_rank)
    passes = Passes(anchors, anchors if rows is None else rows, layout, anchors.dtype, shifted)
    statistics = Statistics(table, summation, denominator)
    scale = scale_of(upstream)
    upstream = upstream / scale
    weight = statistics.negative_weight(upstream, shifted=shifted)

    def gradients(tiles: Sequence[tuple[Tile, list[Tile]]]) -> list[Tensor | None]:
        grad_anchors = torch.zeros_like(anchors) if for_anchors else None
        grad_rows = torch.zeros_like(rows) if rows is not None and for_rows else None
        both = grad_anchors if rows is None else grad_rows
        passes.gradients(tiles, statistics, upstream, weight, grad_anchors, both)
        return [grad_anchors, grad_rows]

    parts = shared_out(gradients, list(layout.tiles()), anchors.device)
    of_anchors, of_rows = (
        anchors.new_empty(0) if first is None else reduce(Tensor.add_, others, first).mul_(scale)
        for first, *others in zip(*parts, strict=True)
    )
    return of_anchors, of_rows


def scale_of(upstream: Tensor) -> Tensor:
    """What to divide an upstream gradient by, lest tiny ones vanish in the product with `exp(-log_neg)`."""
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
    """The layout from the arguments of an operator, which are tensors only."""
    cap = None
    if anchor_rank is not None and anchor_limit is not None and row_rank is not None:
        cap = Cap(anchor_rank, anchor_limit, row_rank)
    return Layout(anchor_labels, row_labels, anchor_ids, row_ids, cap, symmetric=rows is None)


@tiled_losses.register_fake
def _(anchors: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    per_anchor = anchors.new_empty(len(anchors))
    return per_anchor, torch.empty_like(per_anchor, dtype=torch.bool), anchors.new_empty(5, len(anchors))


@tiled_gradient.register_fake
def _(
    upstream: Tensor,
    table: Tensor,
    for_anchors: bool,
    for_rows: bool,
    anchors: Tensor,
    rows: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    of_rows = torch.empty_like(rows) if rows is not None and for_rows else anchors.new_empty(0)
    return torch.empty_like(anchors) if for_anchors else anchors.new_empty(0), of_rows


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, valid, table = output
    ctx.mark_non_differentiable(valid, table)
    ctx.save_for_backward(valid, table, *inputs[:9])
    ctx.options = inputs[9:]


def _backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    valid, table, anchors, rows, *layout = ctx.saved_tensors
    for_anchors, for_rows = ctx.needs_input_grad[:2]
    upstream = torch.where(valid, upstream, 0)
    of_anchors, of_rows = tiled_gradient(
        upstream, table, for_anchors, for_rows, anchors, rows, *layout, *ctx.options
    )  # fmt: skip
    return of_anchors if for_anchors else None, of_rows if for_rows else None, *[None] * 10


def _refuse_second(ctx: Any, *_: Tensor) -> tuple[None, ...]:
    raise RuntimeError("The tiled backend is differentiable once; a second derivative needs backend='reference'")


tiled_losses.register_autograd(_backward, setup_context=_save)
tiled_gradient.register_autograd(_refuse_second)
for _operator in (tiled_losses, tiled_gradient):
    for _device in ("cpu", "cuda"):  # autocast is off inside; float64 stays
        _operator.register_autocast(_device, torch.float32)
