"""Exact in linear memory on any device, in plain torch: tiles of similarities are made, used and dropped.

Rows are sorted by label, so that on the CPU only few tiles hold positives. A tile without them costs a product, one
exponential per pair and its sums. Where rows are contrasted with themselves a tile serves its rows and its columns. The
forward pass keeps sums per anchor; the backward pass makes the tiles again. Both are operators of their own to
`torch.compile`, which does not look into them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pml_supcon.functional.supcon import listed, reference
from pml_supcon.functional.supcon.layout import Layout, Tile, within
from pml_supcon.functional.supcon.problem import AnchorLosses, Cap, Problem
from pml_supcon.functional.supcon.statistics import Statistics
from pml_supcon.functional.supcon.workers import shared_out

#: `exp(s)` and its sums stay well inside float32 and float64 without a shift up to this `|s|`.
SAFE_EXPONENT = {torch.float32: 60.0, torch.float64: 500.0}


def refusal(problem: Problem) -> str | None:
    """Why this backend cannot solve the problem, or None."""
    if problem.similarity is not None:
        return "a similarity other than the dot product needs the whole matrix"
    return None


def anchor_losses(problem: Problem) -> AnchorLosses:
    """Per-anchor losses in `O(N D)` extra memory; differentiable once.

    Listed pairs take memory linear in their number; lists as long as the matrix is large become the matrix.
    """
    if problem.pairs is not None:
        return listed.anchor_losses(problem) if listed.worthwhile(problem) else reference.anchor_losses(problem)
    layout, anchor_order, row_order = Layout.of(problem)
    rows = problem.rows[row_order]
    losses, valid, _ = tiled_losses(
        rows if layout.symmetric else problem.anchors[anchor_order],
        None if layout.symmetric else rows,
        layout.anchor_labels,
        layout.row_labels,
        layout.anchor_ids,
        layout.row_ids,
        *(layout.cap or (None, None, None)),
        problem.temperature,
        problem.summation,
        problem.denominator,
        not problem.bound <= SAFE_EXPONENT[rows.dtype],
    )
    back = torch.argsort(anchor_order)
    return AnchorLosses(losses[back], valid[back])


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
    temperature: float,
    summation: str,
    denominator: str,
    shifted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses `(A,)`, their validity `(A,)` and the table of `Statistics` of sorted anchors `(A, D)`.

    `rows` is None where the anchors are the rows; `shifted` says that similarities may leave the exponent's safe range.
    The others are the fields of a `Layout` and the options.
    """
    layout = rebuild(rows, anchor_labels, row_labels, anchor_ids, row_ids, anchor_rank, anchor_limit, row_rank)
    contrasted = anchors if rows is None else rows
    scaled = anchors / temperature
    tiles = list(layout.tiles())
    negatives = partial(log_negatives, scaled=scaled, rows=contrasted, layout=layout, shifted=shifted)
    log_neg = torch.stack(shared_out(negatives, tiles, anchors.device)).logsumexp(dim=0)

    def positives(boxes: Sequence[tuple[Tile, bool]]) -> Statistics:
        statistics = Statistics.of(log_neg, summation, denominator)
        for box, twice in boxes:
            s = scaled[box[0]] @ contrasted[box[1]].T
            statistics.add_positives(s, layout.positives(box), box[0])
            if twice:
                statistics.add_positives(s.T, layout.positives(box[::-1]), box[1])
        return statistics

    boxes = [(box, layout.symmetric and tile[0] != tile[1]) for tile, found in tiles for box in found]
    statistics = Statistics.merged(shared_out(positives, boxes, anchors.device))
    losses, valid = statistics.losses()
    return losses, valid, statistics.table


def log_negatives(
    tiles: Sequence[tuple[Tile, list[Tile]]], *, scaled: Tensor, rows: Tensor, layout: Layout, shifted: bool
) -> Tensor:
    """Log of the sum of `exp(s)` over each anchor's negatives in these tiles, `(A,)`."""
    sums = scaled.new_full((len(scaled),), -torch.inf if shifted else 0)
    for (a, r), boxes in tiles:
        s = scaled[a] @ rows[r].T
        if not shifted:
            s.exp_()
        for box in boxes:
            s[within((a, r), box)].masked_fill_(layout.same(box), -torch.inf if shifted else 0)
        for part, dim in ((a, 1), (r, 0))[: 1 + (layout.symmetric and a != r)]:
            if shifted:
                sums[part] = torch.logaddexp(sums[part], s.logsumexp(dim=dim))
            else:
                sums[part] += s.sum(dim=dim)
    return sums if shifted else sums.log()


@torch.library.custom_op("pml_supcon::tiled_gradient", mutates_args=())
def tiled_gradient(
    upstream: Tensor,
    table: Tensor,
    anchors: Tensor,
    rows: Tensor | None,
    anchor_labels: Tensor,
    row_labels: Tensor,
    anchor_ids: Tensor | None,
    row_ids: Tensor | None,
    anchor_rank: Tensor | None,
    anchor_limit: Tensor | None,
    row_rank: Tensor | None,
    temperature: float,
    summation: str,
    denominator: str,
    shifted: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of anchors and rows, `dL/dz = W z` tile by tile, `W_ij` the weight of the pair for both its ends.

    `upstream` `(A,)` is 0 for invalid anchors. The second gradient is empty where the anchors are the rows.
    """
    layout = rebuild(rows, anchor_labels, row_labels, anchor_ids, row_ids, anchor_rank, anchor_limit, row_rank)
    contrasted = anchors if rows is None else rows
    statistics = Statistics(table, summation, denominator)
    scaled = anchors / temperature
    # negatives: W_ij = weight_i exp(s_ij - shift_i), without negatives weight_i = 0
    shift = statistics.log_neg.masked_fill(statistics.log_neg == -torch.inf, 0)
    weight = (upstream * statistics.negative_share()).masked_fill(statistics.log_neg == -torch.inf, 0)
    if not shifted:
        weight = weight * (-shift).exp()

    def weights(a: slice, r: slice, s: Tensor) -> Tensor:
        if not shifted:
            return s.exp_().mul_(weight[a, None] + weight[r] if layout.symmetric else weight[a, None])
        w = (s - shift[a, None]).exp() * weight[a, None]
        return w + (s - shift[r]).exp() * weight[r] if layout.symmetric else w

    def gradients(tiles: Sequence[tuple[Tile, list[Tile]]]) -> tuple[Tensor, Tensor]:
        grad_anchors = torch.zeros_like(anchors)
        grad_rows = grad_anchors if rows is None else torch.zeros_like(rows)
        for (a, r), boxes in tiles:
            s = scaled[a] @ contrasted[r].T
            insides = [within((a, r), box) for box in boxes]
            pulls = [
                box_weights(s[inside], box, layout, statistics, upstream)
                for inside, box in zip(insides, boxes, strict=True)
            ]
            w = weights(a, r, s)
            for inside, box, pull in zip(insides, boxes, pulls, strict=True):
                w[inside] = torch.where(layout.same(box), pull, w[inside])
            grad_anchors[a].addmm_(w, contrasted[r])
            if not layout.symmetric or a != r:
                grad_rows[r].addmm_(w.T, anchors[a])
        return grad_anchors, grad_rows

    (grad_anchors, grad_rows), *others = shared_out(gradients, list(layout.tiles()), anchors.device)
    for more_anchors, more_rows in others:
        grad_anchors += more_anchors
        if rows is not None:
            grad_rows += more_rows
    grad_anchors /= temperature
    return grad_anchors, grad_rows.div_(temperature) if rows is not None else anchors.new_empty(0)


def box_weights(s: Tensor, box: Tile, layout: Layout, statistics: Statistics, upstream: Tensor) -> Tensor:
    """The weights of the pairs of a box, as if all had equal labels: their pull, or 0 where they are no positives."""
    a, r = box
    weights = torch.where(layout.positives(box), upstream[a, None] * statistics.positive_gradient(s, a), 0)
    if layout.symmetric:
        reverse = upstream[r, None] * statistics.positive_gradient(s.T, r)
        weights = weights + torch.where(layout.positives((r, a)), reverse, 0).T
    return weights


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
def _(upstream: Tensor, table: Tensor, anchors: Tensor, rows: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(anchors), anchors.new_empty(0) if rows is None else torch.empty_like(rows)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, valid, table = output
    ctx.mark_non_differentiable(valid, table)
    ctx.save_for_backward(valid, table, *inputs[:9])
    ctx.options = inputs[9:]


def _backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    valid, table, anchors, rows, *layout = ctx.saved_tensors
    upstream = torch.where(valid, upstream, 0)
    grad_anchors, grad_rows = tiled_gradient(upstream, table, anchors, rows, *layout, *ctx.options)
    return grad_anchors, grad_rows if rows is not None else None, *[None] * 11


def _refuse_second(ctx: Any, *_: Tensor) -> tuple[None, ...]:
    raise RuntimeError("The tiled backend is differentiable once; a second derivative needs backend='reference'")


tiled_losses.register_autograd(_backward, setup_context=_save)
tiled_gradient.register_autograd(_refuse_second)
for _operator in (tiled_losses, tiled_gradient):
    for _device in ("cpu", "cuda"):  # autocast is off inside; float64 stays
        _operator.register_autocast(_device, torch.float32)
