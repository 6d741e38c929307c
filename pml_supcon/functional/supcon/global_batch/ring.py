"""The tiled loss of a batch that lies on several processes, each holding some of its rows.

Every process meets the rows of the others one block at a time, while the next block is on its way: memory is that of
its own rows. A pair of rows is computed once, on one of the two processes that hold them, and serves both: with `W`
processes each does `1/W` of the products of one process alone. Labels and sums per anchor are known to all.
"""

from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pml_supcon.distributed import collectives
from pml_supcon.functional.supcon.global_batch.shard_plan import ShardPlan, Tiles
from pml_supcon.functional.supcon.global_batch.transfers import P2PTransfer, return_gradient, rotate_blocks
from pml_supcon.functional.supcon.problem import AnchorLosses, Problem
from pml_supcon.functional.supcon.tiled.operators import upstream_scale
from pml_supcon.functional.supcon.tiled.passes import TilePasses
from pml_supcon.functional.supcon.tiled.precision import full_precision, scale_by_sqrt_temperature
from pml_supcon.functional.supcon.tiled.statistics import Statistics
from pml_supcon.functional.supcon.tiled.threads import map_in_threads


def anchor_losses(problem: Problem, plan: ShardPlan) -> AnchorLosses:
    """Losses of all anchors of the batch, in its view-major order, on every process.

    The gradient is that of the sum of what all processes make of the losses. `problem` is of this process's own rows.
    """
    rows = scale_by_sqrt_temperature(problem.rows[plan.row_order], problem.temperature)
    anchors = rows
    if not plan.layout.symmetric:
        anchors = scale_by_sqrt_temperature(problem.anchors[plan.anchor_order], problem.temperature)
    losses, valid = _Ring.apply(anchors, rows, plan)
    back = torch.argsort(plan.anchor_places)
    return AnchorLosses(losses[back], valid[back])


class _Ring(torch.autograd.Function):
    """Sorted own anchors and rows to the losses of all anchors `(A,)` by place, and their validity."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, rows: Tensor, plan: ShardPlan) -> tuple[Tensor, Tensor]:
        with full_precision(anchors.device):
            statistics = sums(plan, anchors, rows)
        losses, valid = statistics.losses()
        ctx.mark_non_differentiable(valid)
        ctx.save_for_backward(anchors, rows, valid, statistics.table)
        ctx.plan = plan
        return losses, valid

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor, Tensor | None, None]:
        anchors, rows, valid, table = ctx.saved_tensors
        plan: ShardPlan = ctx.plan
        with full_precision(anchors.device):
            upstream = collectives.all_reduce(torch.where(valid, upstream, 0), plan.group)
            scale = upstream_scale(upstream)
            statistics = Statistics(table, plan.summation, plan.denominator)
            of_anchors, of_rows = gradients(plan, anchors, rows, statistics, upstream / scale)
            of_anchors *= scale
        return of_anchors, None if plan.layout.symmetric else of_rows.mul_(scale), None


def sums(plan: ShardPlan, anchors: Tensor, rows: Tensor) -> Statistics:
    """What the losses need to know of every anchor of the batch: once around for the negatives, then the positives."""
    layout, device = plan.layout, anchors.device
    log_neg = torch.full_like(layout.anchor_labels, -torch.inf, dtype=anchors.dtype)
    for peer, block in rotate_blocks(plan, rows):
        passes = passes_of(plan, anchors, peer, block)
        parts = map_in_threads(passes.log_negatives, plan.tiles(peer), device)
        log_neg = torch.logaddexp(log_neg, torch.stack(parts).logsumexp(dim=0))
    log_neg = collectives.all_logsumexp(log_neg, plan.group)
    start = Statistics.of(log_neg, plan.summation, plan.denominator)
    statistics = start.copy()
    for peer, block in rotate_blocks(plan, rows):
        passes = passes_of(plan, anchors, peer, block)
        boxes = [(box, layout.symmetric and tile[0] != tile[1]) for tile, found in plan.tiles(peer) for box in found]
        statistics = Statistics.merged([statistics, *map_in_threads(partial(passes.positives, start), boxes, device)])
    return statistics.reduced(plan.group)


def gradients(
    plan: ShardPlan, anchors: Tensor, rows: Tensor, statistics: Statistics, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of this process's anchors and rows (one and the same with symmetry): the third time around."""
    symmetric = plan.layout.symmetric
    of_anchors = torch.zeros_like(anchors)
    of_rows = of_anchors if symmetric else torch.zeros_like(rows)
    weight = statistics.negative_weight(upstream, shifted=plan.shifted)
    on_its_way: P2PTransfer | None = None
    for peer, block in rotate_blocks(plan, rows):
        if on_its_way is not None:  # before there is another: memory for two would be kept
            of_rows += on_its_way.wait()
            on_its_way = None
        passes = passes_of(plan, anchors, peer, block)
        work = partial(gradients_with, plan, passes, peer, anchors, block, statistics, upstream, weight)
        parts = map_in_threads(work, plan.tiles(peer), anchors.device)
        of_anchors += reduce(Tensor.add_, [part.of_anchors for part in parts])
        if peer != plan.rank:
            of_block = reduce(Tensor.add_, [part.of_block for part in parts])
            on_its_way = return_gradient(plan, of_block, peer)
        elif not symmetric:
            of_rows += reduce(Tensor.add_, [part.of_block for part in parts])
        del parts
    if on_its_way is not None:
        of_rows += on_its_way.wait()
    return of_anchors, of_rows


class Gradients(NamedTuple):
    """Those of own anchors and of the rows of a peer."""

    of_anchors: Tensor
    of_block: Tensor


def gradients_with(
    plan: ShardPlan,
    passes: TilePasses,
    peer: int,
    anchors: Tensor,
    block: Tensor,
    statistics: Statistics,
    upstream: Tensor,
    weight: Tensor,
    tiles: Tiles,
) -> Gradients:
    """What some of the tiles with a peer's rows add to the gradients."""
    of_anchors = torch.zeros_like(anchors)
    of_block = of_anchors if peer == plan.rank and plan.layout.symmetric else torch.zeros_like(block)
    passes.gradients(
        tiles,
        statistics,
        upstream,
        weight,
        At(plan.anchor_blocks[plan.rank], of_anchors),
        At(plan.row_blocks[peer], of_block),
    )
    return Gradients(of_anchors, of_block)


def passes_of(plan: ShardPlan, anchors: Tensor, peer: int, block: Tensor) -> TilePasses:
    """The passes over this process's anchors and the rows of a peer."""
    mine = plan.anchor_blocks[plan.rank]
    return TilePasses(
        anchors=At(mine, anchors),
        rows=At(plan.row_blocks[peer], block),
        layout=plan.layout,
        dtype=anchors.dtype,
        shifted=plan.shifted,
    )


@dataclass(frozen=True)
class At:
    """Rows that stand at some places of the layout, found by these."""

    places: slice
    rows: Tensor

    def __getitem__(self, places: slice) -> Tensor:
        """The rows of a slice of the places."""
        return self.rows[places.start - self.places.start : places.stop - self.places.start]
