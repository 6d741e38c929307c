"""The loss on the ``triton`` backend of a batch on several processes, each with a slice of the rows as its own.

Every process holds all rows Z (N, D), of which process r owns Z_r (N_r, D):

1. forward: the losses and statistics of the own anchors from all rows, 2 N_r N D operations; then one all-gather of
   both, 24 bytes a row;
2. backward, with the upstream gradient u of all anchors: G_ij = u_i dl_i/ds_ij + u_j dl_j/ds_ji, (N_r, N), and
   dL/dZ_r = G Z, 4 N_r N D operations in one pass. This is the whole gradient of the own rows: no gradient is sent.

The gradients of the own anchors, and of all rows from the own anchors, would take two passes, 8 N_r N D operations.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup, get_rank

from pml_supcon.distributed import collectives
from pml_supcon.functional.supcon.classes import Cap, rank_cap
from pml_supcon.functional.supcon.execution import full_precision
from pml_supcon.functional.supcon.global_batch.shard_plan import blocks, places_of
from pml_supcon.functional.supcon.problem import AnchorLosses, Problem


def sharded_losses(
    problem: Problem, labels: Tensor, samples: list[int], views: int, group: ProcessGroup
) -> AnchorLosses:
    """Return the losses of all anchors of the batch, in its view-major order, on every process.

    The gradient is the gradient of the sum of all processes' results. ``problem``, symmetric, holds only this process's
    rows, ``labels`` ``(B,)`` the labels of all processes by rank, ``samples`` the number of samples of each process.
    """
    # 1. the order of the gathered rows: by process, and view-major in each; their positions v * B + b in the batch
    places = torch.cat([places_of(block, views, len(labels), labels.device) for block in blocks(samples)])
    row_labels, cap = labels.repeat(views), problem.cap
    if cap is not None and problem.options.positives_cap is not None:
        cap = rank_cap(row_labels, views, problem.options.positives_cap // views, len(row_labels))
        cap = Cap(*(part[places] for part in cap))
    whole = replace(problem, anchor_labels=row_labels[places], row_labels=row_labels[places], cap=cap)
    # 2. losses in this order, then in the order of the batch
    sizes = [views * number for number in samples]
    losses, valid = _OwnRows.apply(problem.given_rows()[1], whole, sizes, group, False)
    back = torch.argsort(places)
    return AnchorLosses(losses[back], valid[back])


def replicated_losses(problem: Problem, sizes: list[int], group: ProcessGroup) -> AnchorLosses:
    """Return the losses of a symmetric problem that all processes hold; process r owns ``sizes[r]`` rows, in order.

    The gradient of the rows is that of the own ones, and 0 for the others.
    """
    return AnchorLosses(*_OwnRows.apply(problem.given_rows()[1], problem, sizes, group, True))


class _OwnRows(torch.autograd.Function):
    """A map from this process's rows, or all, to the losses ``(N,)`` and validity ``(N,)`` of all anchors."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, problem: Problem, sizes: list[int], group: ProcessGroup, replicated: bool
    ) -> tuple[Tensor, Tensor]:
        from pml_supcon.functional.supcon.triton.operators import Part  # imports Triton, which is optional

        own = blocks(sizes)[get_rank(group)]
        # 1. all rows (N, D), not normalised, gathered in the dtype that they came in; the own anchors' losses, validity
        # and statistics
        if not replicated:
            rows = collectives.all_gather_rows(rows.to(problem.embeddings.dtype), sizes, group).to(rows.dtype)
        with full_precision(rows.device):
            part = Part.of(problem, rows, own)
            losses, valid, statistics = part.losses()
        # 2. of all anchors, (N, 6)
        table = torch.cat([losses[None], valid[None].to(losses.dtype), statistics]).T
        table = collectives.all_gather_rows(table, sizes, group).T.contiguous()
        losses, valid, statistics = table[0].clone(), table[1] > 0, table[2:]
        ctx.mark_non_differentiable(valid)
        ctx.save_for_backward(valid, statistics, *part.tensors)
        ctx.part, ctx.own, ctx.group = part._replace(tensors=()), own, group
        ctx.number = len(rows) if replicated else None
        return losses, valid

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor, None, None, None, None]:
        valid, statistics, *tensors = ctx.saved_tensors
        # u (N,), summed over the results of all processes; G Z, (N_r, D)
        upstream = collectives.all_reduce(torch.where(valid, upstream, 0), ctx.group)
        with full_precision(upstream.device):
            gradient = ctx.part._replace(tensors=tuple(tensors)).gradient(statistics, upstream)
        if ctx.number is not None:
            own, gradient = gradient, gradient.new_zeros(ctx.number, gradient.shape[1])
            gradient[ctx.own] = own
        return gradient, None, None, None, None
