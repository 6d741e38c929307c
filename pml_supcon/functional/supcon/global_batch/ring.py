"""The tiled loss of a batch that is sharded over several processes, as a ring.

With W processes, process r holds the rows Z_r (N_r, D). It receives the block Z_q of each peer q in turn, while the
next block is in flight: memory is O(N_r D). Each pair of rows is computed once, on one of the two processes that hold
it, and serves both: each process computes 1/W of all products. Labels and the sums per anchor, (A,) each,
are on all processes. The blocks rotate three times:

1. negatives: log_neg_i = log sum_{n in N(i)} exp(s_in), then a log-sum-exp over processes;
2. positives: the sums over P(i) that equations 2 and 3 need (``Statistics``), then a sum over processes;
3. backward, with the upstream gradient u: G_ij = u_i dl_i/ds_ij, dL/dZ_r += G Z_q, and dL/dZ_q += G^T Z_r, which
   returns to process q.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pml_supcon.distributed import collectives
from pml_supcon.functional.supcon.execution import full_precision, map_in_threads, scale_by_sqrt_temperature
from pml_supcon.functional.supcon.global_batch.shard_plan import ShardPlan, Tiles
from pml_supcon.functional.supcon.global_batch.transfers import P2PTransfer, return_gradient, rotate_blocks
from pml_supcon.functional.supcon.problem import AnchorLosses, Problem
from pml_supcon.functional.supcon.tiled.bilinear import Bilinear
from pml_supcon.functional.supcon.tiled.layout import Layout
from pml_supcon.functional.supcon.tiled.passes import TilePasses, upstream_scale
from pml_supcon.functional.supcon.tiled.statistics import AnchorSums
from pml_supcon.functional.supcon.tiled.weighted_layout import WeightedLayout
from pml_supcon.functional.supcon.tiled.weighted_passes import WeightedPasses


def anchor_losses(problem: Problem, plan: ShardPlan) -> AnchorLosses:
    """Return the losses of all anchors of the batch, in its view-major order, on every process.

    The gradient is the gradient of the sum of all processes' results. ``problem`` holds only this process's rows.
    """
    anchors, rows = problem.prepared_rows()
    rows = scale_by_sqrt_temperature(rows[plan.row_order], problem.temperature)
    if plan.layout.symmetric:
        anchors = rows
    else:
        anchors = scale_by_sqrt_temperature(anchors[plan.anchor_order], problem.temperature)
    losses, valid = _Ring.apply(anchors, rows, plan)
    back = torch.argsort(plan.anchor_places)
    return AnchorLosses(losses[back], valid[back])


class _Ring(torch.autograd.Function):
    """A map from this process's sorted anchors and rows to the losses ``(A,)`` and validity ``(A,)`` of all anchors."""

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
            statistics = plan.statistics(table, plan.formula)
            of_anchors, of_rows = gradients(plan, anchors, rows, statistics, upstream / scale)
            of_anchors *= scale
        return of_anchors, None if plan.layout.symmetric else of_rows.mul_(scale), None


def sums(plan: ShardPlan, anchors: Tensor, rows: Tensor) -> AnchorSums:
    """Return the sums over positives and negatives of every anchor of the batch: rotations 1 and 2."""
    layout, device = plan.layout, anchors.device
    bilinear = bilinear_of(plan, anchors, rows)
    log_neg = anchors.new_full((len(layout.anchor_labels),), -torch.inf)
    # 1. log_neg (A,): each block adds its negatives, on the log scale; then the sum over processes. Weighted pairs need
    # it for "one_positive" only.
    if isinstance(layout, Layout) or plan.formula.denominator == "one_positive":
        for peer, block in rotate_blocks(plan, rows):
            passes = passes_of(plan, anchors, peer, block, bilinear)
            parts = map_in_threads(passes.log_negatives, plan.tiles(peer), device)
            log_neg = reduce(torch.logaddexp, parts, log_neg)
        log_neg = collectives.all_logsumexp(log_neg, plan.group)
    # 2. The sums over positives. "one_positive" needs the complete log_neg: hence a second rotation.
    start = plan.statistics.of(log_neg, plan.formula)
    statistics = start.copy()
    for peer, block in rotate_blocks(plan, rows):
        passes = passes_of(plan, anchors, peer, block, bilinear)
        positives: Callable[[Any], AnchorSums] = partial(passes.positives, start)
        boxes = [(box, layout.symmetric and tile[0] != tile[1]) for tile, inside in plan.tiles(peer) for box in inside]
        statistics = AnchorSums.merged([statistics, *map_in_threads(positives, boxes, device)])
    if bilinear is not None:
        bilinear.add_to(statistics, plan.anchor_blocks[plan.rank])
    return statistics.reduced(plan.group)


def gradients(
    plan: ShardPlan, anchors: Tensor, rows: Tensor, statistics: AnchorSums, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of this process's anchors and rows, the same tensor with symmetry: rotation 3."""
    symmetric = plan.layout.symmetric
    of_anchors = torch.zeros_like(anchors)
    of_rows = of_anchors if symmetric else torch.zeros_like(rows)
    bilinear = bilinear_of(plan, anchors, rows)

    def contributions(peer: int, block: Tensor, passes: Any, tiles: Tiles) -> tuple[Tensor, Tensor]:
        """Return the contributions of some tiles to the gradients of the anchors and of a peer's rows."""
        of_anchors = torch.zeros_like(anchors)
        of_block = of_anchors if symmetric and peer == plan.rank else torch.zeros_like(block)
        targets = BlockView(plan.anchor_blocks[plan.rank], of_anchors), BlockView(plan.row_blocks[peer], of_block)
        passes.gradients(tiles, statistics, upstream, *targets)
        return of_anchors, of_block

    # 3. For each peer q: G_ij = u_i dl_i/ds_ij, (A_r, N_q), of our anchors and its rows, plus u_j dl_j/ds_ji with
    # symmetry. G Z_q (A_r, D) is added to `of_anchors`; G^T Z_r (N_q, D) is the peer's gradient and is sent to it.
    in_flight: P2PTransfer | None = None
    for peer, block in rotate_blocks(plan, rows):
        if in_flight is not None:  # one transfer at a time: the next starts after this one
            of_rows += in_flight.wait()
            in_flight = None
        work = partial(contributions, peer, block, passes_of(plan, anchors, peer, block, bilinear))
        parts = map_in_threads(work, plan.tiles(peer), anchors.device)
        of_anchors += reduce(Tensor.add_, [part for part, _ in parts])
        if peer != plan.rank:
            in_flight = return_gradient(plan, reduce(Tensor.add_, [part for _, part in parts]), peer)
        elif not symmetric:
            of_rows += reduce(Tensor.add_, [part for _, part in parts])
        del parts
    if in_flight is not None:
        of_rows += in_flight.wait()
    if bilinear is not None:
        bilinear.subtract_gradients(upstream[plan.anchor_blocks[plan.rank]], of_anchors, of_rows)
    return of_anchors, of_rows


def bilinear_of(plan: ShardPlan, anchors: Tensor, rows: Tensor) -> Bilinear | None:
    """Return the part of the loss of soft labels that needs no tiles, of this process's anchors and rows, or None."""
    if plan.shifted or not isinstance(plan.layout, WeightedLayout):
        return None
    mine = plan.anchor_blocks[plan.rank], plan.row_blocks[plan.rank]
    reduce = partial(collectives.all_reduce, group=plan.group)
    return Bilinear.of(plan.layout, plan.formula, anchors, rows, mine, reduce)


def passes_of(plan: ShardPlan, anchors: Tensor, peer: int, block: Tensor, bilinear: Bilinear | None) -> Any:
    """Return the passes over this process's anchors and the rows of a peer."""
    mine, theirs = BlockView(plan.anchor_blocks[plan.rank], anchors), BlockView(plan.row_blocks[peer], block)
    if isinstance(plan.layout, Layout):
        return TilePasses(mine, theirs, plan.layout, anchors.dtype, plan.shifted)
    denominator, weighted = plan.formula.denominator, bilinear is None
    return WeightedPasses(mine, theirs, plan.layout, anchors.dtype, plan.shifted, denominator, weighted)


@dataclass(frozen=True)
class BlockView:
    """A slice of the layout's rows, indexed by places in the whole layout."""

    places: slice
    rows: Tensor

    def __getitem__(self, places: slice) -> Tensor:
        """Return the rows at a slice of the places."""
        return self.rows[places.start - self.places.start : places.stop - self.places.start]
