"""The losses of listed pairs (a miner's ``indices_tuple``) in memory linear in their number: no ``(A, M)`` matrix.

It follows the definition in ``reference`` pair by pair, and is as exact. For long lists the dense matrix is cheaper:
see ``is_sparse``.
"""

from typing import Any

import torch
from torch import Tensor

from pml_supcon.functional.supcon.execution import full_precision
from pml_supcon.functional.supcon.problem import AnchorLosses, Problem

CHUNK = 2**15  # pairs whose rows are gathered at once
DENSE_SHARE = 1 / 16  # of all pairs: beyond it the lists themselves take as much memory as the matrix


def is_sparse(problem: Problem) -> bool:
    """Return True if the listed pairs are so few that the dense matrix would cost more."""
    assert problem.pairs is not None  # for the type checker: the caller has checked it
    listed = sum(len(anchors) for anchors in problem.pairs[::2])
    return listed < DENSE_SHARE * problem.num_anchors * problem.num_rows


def anchor_losses(problem: Problem) -> AnchorLosses:
    """Return per-anchor losses over the set of ``problem.pairs``; differentiable once."""
    assert problem.pairs is not None  # for the type checker: as above
    num_anchors, num_rows = problem.num_anchors, problem.num_rows
    # each pair once (triplets repeat pairs), as sorted keys `a * M + j`; one in both lists counts once in a denominator
    positives, negatives = (torch.unique(a * num_rows + j) for a, j in (problem.pairs[:2], problem.pairs[2:]))
    a1, p, a2, n = positives // num_rows, positives % num_rows, negatives // num_rows, negatives % num_rows
    both = in_sorted(positives, negatives)
    with full_precision(problem.device):
        # s of the listed pairs, (positive pairs,) and (negative pairs,)
        anchors, rows = problem.prepared_rows()
        s_pos = _PairDots.apply(anchors, rows, a1, p) / problem.temperature
        s_neg = _PairDots.apply(anchors, rows, a2, n) / problem.temperature
        # log of the sum over N(i) of exp(s), (A,), then log D_ip, (positive pairs,)
        log_neg = segment_logsumexp(s_neg, a2, num_anchors)
        if problem.denominator == "all":
            log_pos = segment_logsumexp(s_pos.masked_fill(both, -torch.inf), a1, num_anchors)
            log_denominator = torch.logaddexp(log_neg, log_pos)[a1]
        elif problem.denominator == "one_positive":
            own = s_pos - problem.margin if problem.margin else s_pos
            log_denominator = torch.where(both, log_neg[a1], torch.logaddexp(own, log_neg[a1]))
        else:
            log_denominator = log_neg[a1]
        number = torch.bincount(a1, minlength=num_anchors).to(s_pos.dtype)
        valid = number > 0
        if problem.denominator == "negatives":
            valid = valid & (torch.bincount(a2, minlength=num_anchors) > 0)
        # equations 2 and 3: log_prob is log(exp(s_ip) / D_ip), (positive pairs,)
        log_prob = torch.where(valid[a1], s_pos - log_denominator, 0)
        if problem.summation == "out":
            losses = -torch.zeros_like(number).index_add(0, a1, log_prob) / number.clamp(min=1)
        else:
            losses = number.clamp(min=1).log() - segment_logsumexp(log_prob, a1, num_anchors)
        return AnchorLosses(torch.where(valid, losses, 0), valid)


def in_sorted(x: Tensor, values: Tensor) -> Tensor:
    """Return True for each entry of ``x`` that is one of the sorted ``values``, ``(len(x),)`` bool."""
    if not len(values):
        return torch.zeros_like(x, dtype=torch.bool)
    return values[torch.searchsorted(values, x).clamp_(max=len(values) - 1)] == x


def segment_logsumexp(x: Tensor, segment: Tensor, size: int) -> Tensor:
    """Return ``log sum exp(x)`` of each of ``size`` segments, ``(size,)``; minus infinity for an empty one."""
    # (size,): the largest x of each segment, a constant for the gradient; 0 for an empty segment
    shift = x.detach().new_full((size,), -torch.inf).scatter_reduce(0, segment, x.detach(), "amax")
    shift = shift.masked_fill(shift == -torch.inf, 0)
    # log sum exp(x - shift) + shift; the inner `where` keeps log(0) out of the gradient
    total = torch.zeros_like(shift).index_add(0, segment, (x - shift[segment]).exp())
    some = total != 0
    return torch.where(some, torch.where(some, total, 1).log() + shift, -torch.inf)


class _PairDots(torch.autograd.Function):
    """The dot products ``anchors[i] . rows[j]`` of two index lists, ``(pairs,)``, gathered a chunk at a time.

    Autograd's own backward of the gathered rows would store ``(pairs, D)`` twice.
    """

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, rows: Tensor, i: Tensor, j: Tensor) -> Tensor:
        ctx.save_for_backward(anchors, rows, i, j)
        # each chunk gathers both of its rows, (CHUNK, D), and sums their products over the columns
        dots = anchors.new_empty(len(i))
        for start in range(0, len(i), CHUNK):
            part = slice(start, start + CHUNK)
            torch.sum(anchors.index_select(0, i[part]).mul_(rows.index_select(0, j[part])), dim=1, out=dots[part])
        return dots

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_anchors, grad_rows = _PairDotsGradient.apply(upstream, *ctx.saved_tensors, ctx.needs_input_grad[:2])
        return grad_anchors, grad_rows, None, None


class _PairDotsGradient(torch.autograd.Function):
    """The gradient as a separate function, so that its derivative raises an error instead of being 0.

    ``wanted`` selects the gradients of anchors and of rows; the other is None.
    """

    @staticmethod
    def forward(
        ctx: Any, upstream: Tensor, anchors: Tensor, rows: Tensor, i: Tensor, j: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        # buffers (A, D) and (M, D), only of the requested gradients
        grad_anchors, grad_rows = (
            torch.zeros_like(x) if want else None for x, want in zip((anchors, rows), wanted, strict=True)
        )
        for start in range(0, len(i), CHUNK):
            part = slice(start, start + CHUNK)
            # of the dot product of pair k: d/d anchor_i = u_k row_j and d/d row_j = u_k anchor_i, (CHUNK, D)
            weight = upstream[part, None]
            if grad_anchors is not None:
                grad_anchors.index_add_(0, i[part], rows.index_select(0, j[part]).mul_(weight))
            if grad_rows is not None:
                grad_rows.index_add_(0, j[part], anchors.index_select(0, i[part]).mul_(weight))
        return grad_anchors, grad_rows

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("Listed pairs are differentiable once; a second derivative needs backend='reference'")
