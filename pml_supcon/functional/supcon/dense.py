"""The ``dense`` backend: losses and gradient in closed form over the whole ``(A, M)`` matrix, for small batches.

The forward pass writes the losses and their derivatives ``W_ij = d l_i / d s_ij`` side by side, normalisation included;
the backward pass is two products. Half of the matrix is enough where it is symmetric and large (``upper_triangle``).
``reference`` computes the same with autograd, in more operations, and ``tiled`` in linear memory, with bookkeeping that
only large batches repay.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pml_supcon._tensors import traced
from pml_supcon.functional.supcon import upper_triangle
from pml_supcon.functional.supcon.execution import full_precision, needs_shift
from pml_supcon.functional.supcon.problem import AnchorLosses, Problem, lengths
from pml_supcon.functional.supcon.reference import label_weights, log_class_sizes, pair_numbers, pair_weights

LN_2 = math.log(2)

#: The largest number of pairs ``A * M`` for which "auto" prefers this backend; measured, see `docs/benchmarks.md`.
PREFERRED_PAIRS = 2**22
#: The largest number of rows for which adding the transposed ``G^T`` takes less time than one more product; measured.
TRANSPOSED_ROWS = 768
#: The least number of pairs from which on the matrix has no rows for anchors without a listed positive; measured.
COMPACT_PAIRS = 2**15
#: From so many entries of the matrix on, fewer listed pairs than this share of them are faster without it; measured.
SPARSE_PAIRS, SPARSE_SHARE = 2**17, 1 / 64


def refusal(problem: Problem) -> str | None:
    """Return the reason why this backend cannot solve the problem, or None."""
    if problem.similarity is not None:
        return "a similarity other than the dot product needs a derivative of its own"
    if traced(problem.embeddings):
        return "torch.compile cannot trace it"
    return problem.transform_refusal


def is_preferred(problem: Problem) -> bool:
    """Return True if the matrix is so small that this backend is the fastest: on the CPU, by measurement."""
    if problem.device.type != "cpu":
        return False
    if problem.pairs is None:
        return problem.num_anchors * problem.num_rows <= PREFERRED_PAIRS
    a1, _, a2, _ = problem.pairs
    entries = (len(a1) if has_few_anchors(problem) else problem.num_anchors) * problem.num_rows
    sparse = entries >= SPARSE_PAIRS and len(a1) + len(a2) < SPARSE_SHARE * entries
    return entries <= PREFERRED_PAIRS and not sparse


def anchor_losses(problem: Problem) -> AnchorLosses:
    """Return per-anchor losses from the dense matrix; differentiable once."""
    losses, valid = _Losses.apply(problem.embeddings, problem.references, problem)
    return AnchorLosses(losses, valid)


class _Losses(torch.autograd.Function):
    """A map from embeddings and references, as given, to the losses ``(A,)`` and the validity ``(A,)`` of anchors."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, references: Tensor | None, problem: Problem) -> tuple[Tensor, Tensor]:
        with full_precision(problem.device):
            # 1. z = x / |x|, (N, D), and |x|, (N, 1); the same of the references, (M, D)
            z, norms = unit_rows(embeddings, problem)
            rows, row_norms = (z, None) if references is None else unit_rows(references, problem)
            kept, ctx.half, ctx.symmetric = kept_anchors(problem), needs_half(problem), True
            if ctx.half:
                losses, valid, saved = upper_triangle.losses_of(z, problem)
            else:
                # 2. t_ij = s_ij / ln 2 = z_i . z_j / (tau ln 2), (A, M): exp(s_ij) = 2^t_ij, and 2^t is cheaper
                t = (anchors_of(z, problem, kept) * (1 / (problem.temperature * LN_2))) @ rows.T
                # 3. l_i, (A,), and W_ij = d l_i / d s_ij, (A, M)
                form = plain_form(t, problem, kept) if is_plain(problem) else closed_form(t, problem)
                losses, valid, derivative = form
                saved, ctx.symmetric = (*derivative.matrices, *derivative.divisors), derivative.symmetric
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(valid, kept, z, norms, rows, row_norms, *saved)
        ctx.problem = problem
        if kept is not None:
            losses = losses.new_zeros(problem.num_anchors).index_copy_(0, kept, losses)
            valid = valid.new_zeros(problem.num_anchors).index_copy_(0, kept, valid)
        ctx.mark_non_differentiable(valid)
        return losses, valid

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, Tensor | None, None]:
        if upstream is None:
            return None, None, None
        problem = ctx.problem
        arguments = upstream, problem, ctx.needs_input_grad[:2], ctx.half, ctx.symmetric, *ctx.saved_tensors
        if not torch.is_grad_enabled():
            return *gradients_of(*arguments), None
        # `create_graph=True`: the gradients depend on the inputs of the loss, also where these are not read again
        return *_Gradients.apply(problem.embeddings, problem.references, *arguments), None


class _Gradients(torch.autograd.Function):
    """The gradients as a separate function, so that their derivative raises an error instead of being 0."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, references: Tensor | None, *arguments: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        return gradients_of(*arguments)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("The dense backend is differentiable once; a second derivative needs backend='reference'")


class Derivative(NamedTuple):
    """``W_ij = d l_i / d s_ij`` ``(A, M)``: the first matrix ``(A, M)`` over its divisor ``(A,)``, minus the others.

    ``symmetric`` is true if every matrix ``S`` is symmetric. With a divisor ``r``, ``W + W^T`` then consists of
    ``(1 / r_i + 1 / r_j) S_ij``, without a transposed matrix, which PyTorch adds slowly: its columns are far apart in
    memory.
    """

    matrices: tuple[Tensor, ...]
    divisors: tuple[Tensor, ...]
    symmetric: bool

    def times(self, upstream: Tensor) -> Tensor:
        """Return ``u_i W_ij`` for ``u`` ``(A,)``, plus ``u_j W_ji`` if ``symmetric``."""
        total: Tensor | None = None
        for matrix, divisor in zip(self.matrices, self.divisors, strict=True):
            v = upstream / divisor
            part = (v[:, None] + v).mul_(matrix) if self.symmetric else matrix * v[:, None]
            total = part if total is None else total.sub_(part)  # no `addcmul_`, which does not give 0 for equal parts
        assert total is not None  # for the type checker: there is a matrix
        return total


def is_plain(problem: Problem) -> bool:
    """Return True if the denominator is a plain sum of ``exp(s)``, without a shift, over all others or listed pairs."""
    all_rows = problem.denominator == "all" and problem.cap is None and not problem.class_balanced
    return all_rows and problem.num_rows > 1 and not needs_shift(problem)


def needs_half(problem: Problem) -> bool:
    """Return True if half of the matrix is enough, and the batch is so large that this is faster."""
    large = problem.device.type == "cpu" and problem.num_rows > upper_triangle.STRIP
    return large and is_plain(problem) and has_symmetric_pairs(problem) and problem.target is None


def has_few_anchors(problem: Problem) -> bool:
    """Return True if at most half of the anchors have a listed positive, and the matrix can leave out the others."""
    if problem.pairs is None or problem.num_anchors * problem.num_rows < COMPACT_PAIRS:
        return False
    return 2 * len(problem.pairs[0]) <= problem.num_anchors and is_plain(problem)


def kept_anchors(problem: Problem) -> Tensor | None:
    """Return the row numbers of the anchors with a listed positive, sorted, if few have one; None: all are kept.

    The others have no loss, so the matrix needs no rows for them.
    """
    return torch.unique(problem.pairs[0]) if problem.pairs is not None and has_few_anchors(problem) else None


def plain_form(t: Tensor, problem: Problem, kept: Tensor | None) -> tuple[Tensor, Tensor, Derivative]:
    """Return what ``closed_form`` returns, for the defaults (``is_plain``), in fewer operations.

    With ``kept`` ``(A',)``, ``t`` ``(A', M)`` and the results are of these anchors only.

    The number of operations determines the time of a small batch. An operation that nothing else in a training step
    uses costs most: its code is not in the caches of the processor. Of a large batch, products with 0 and 1 take
    less time than masks.
    """
    # 1. p_ij, (A, M), and n_i, (A,); for listed pairs 1 for those in the denominator, (A, M)
    p, contrasted = (label_weights(problem), None) if problem.pairs is None else listed_weights(problem, kept)
    number = pair_numbers(problem, p)
    valid = number > 0
    number = torch.where(valid, number, 1)
    # 2. for L_out the mean of t_ij with the weights p_ij, (A,)
    pull = (t * p).sum(dim=1) / number if problem.summation == "out" else None
    # 3. exp(s_ij), (A, M), 0 for the anchor itself, and D_i, (A,), above 0 as there are other rows; of listed pairs an
    # anchor can have none
    if contrasted is not None:
        e = t.exp2_().mul_(contrasted)
        total = e.sum(dim=1).clamp(min=torch.finfo(t.dtype).tiny)
    else:
        if problem.first_anchor is not None:
            t.diagonal(problem.first_anchor).fill_(-torch.inf)
        e = t.exp2_()
        total = e.sum(dim=1)
    # 4. for L_in the log of the mean of exp(s_ij) with the weights p_ij, (A,); l_i = log D_i - this part, (A,)
    pulls, divisor = p, number
    if pull is None:
        pulls = p.mul_(e)
        divisor = pulls.sum(dim=1)
        pull = (divisor / number).log2()
        divisor = divisor.clamp(min=torch.finfo(t.dtype).tiny)
    push, of_pushes = times_share(total.log2(), total, p, number, problem)
    losses = (push - pull) * LN_2
    derivative = Derivative((e, pulls), (of_pushes, divisor), has_symmetric_pairs(problem))
    return torch.where(valid, losses, 0), valid, derivative


def closed_form(t: Tensor, problem: Problem) -> tuple[Tensor, Tensor, Derivative]:
    """Return the losses ``(A,)``, their validity ``(A,)`` and the derivative ``W_ij = d l_i / d s_ij`` ``(A, M)``.

    ``t = s / ln 2`` ``(A, M)`` is overwritten. With ``D_i`` the sum of ``exp(s_ij)`` over the pairs in the denominator
    of anchor i, ``p_ij`` the weights of the positives (1 for class labels, 0 for other pairs) and ``n_i`` their sum or
    number, equations 2 and 3 are

        out:  l_i = sum_j p_ij (log D_i - s_ij) / n_i,
              W_ij = sum_k p_ik / n_i exp(s_ij) / D_i - p_ij / n_i
        in:   l_i = log D_i - log sum_j p_ij exp(s_ij) + log n_i,
              W_ij = exp(s_ij) / D_i - p_ij exp(s_ij) / sum_j p_ij exp(s_ij)
    """
    # p_ij, P(i) and N(i), (A, M), and n_i, (A,)
    p, positives, negatives = pair_weights(problem)
    number = pair_numbers(problem, p)
    valid = number > 0
    if problem.denominator == "negatives":
        valid &= negatives.any(dim=1)
    number = number.masked_fill_(number == 0, 1)
    if problem.denominator == "one_positive":
        losses, w = one_positive(t, p, positives, negatives, number, problem)
        derivative = Derivative((w,), (torch.ones_like(losses),), symmetric=False)
    else:
        shifted, labelled = needs_shift(problem), problem.cap is None and problem.pairs is None
        balance = log_class_sizes(problem, positives, number) if problem.class_balanced else None
        # 1. the part of the positives, (A,); a pair in neither list can have an infinite t
        if problem.summation == "out":
            pulls, of_pulls = p, number
            listed = shifted or problem.pairs is not None
            pull = torch.linalg.vecdot(torch.where(positives, t, 0) if listed else t, p) / number
        else:
            pull, pulls, of_pulls = masked_exponentials(weighted(t, p, problem), positives, shifted=shifted)
            pull = pull.sub_(number.log2())
        # 2. log D_i, (A,)
        mask: Tensor | int | None = negatives
        if problem.denominator == "all":
            mask = problem.first_anchor if labelled else positives | negatives
        if balance is not None:  # the exponentials of a class over its size
            t.sub_(balance, alpha=1 / LN_2)
        push, pushes, of_pushes = masked_exponentials(t, mask, shifted=shifted)
        push, of_pushes = times_share(push, of_pushes, p, number, problem)
        # 3. losses, and W = exp(s) / D - the positives' part
        losses = push.sub_(pull).mul_(LN_2)
        symmetric = labelled and not shifted and balance is None and has_symmetric_pairs(problem)
        derivative = Derivative((pushes, pulls), (of_pushes, of_pulls), symmetric)
    return torch.where(valid, losses, 0), valid, derivative


def has_symmetric_pairs(problem: Problem) -> bool:
    """Return True if similarities and the weights that labels give to pairs are symmetric matrices."""
    return problem.symmetric and problem.pairs is None and (problem.target is None or problem.target.symmetric)


def listed_weights(problem: Problem, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return 1 for the listed positives, and 1 for all listed pairs, 0 elsewhere: two matrices ``(A, M)``.

    With ``kept`` ``(A',)`` they are ``(A', M)``.
    """
    assert problem.pairs is not None  # for the type checker: the caller has checked it
    a1, p, a2, n = problem.pairs
    size, num_rows = problem.num_anchors, problem.num_rows
    if kept is not None:
        # the row of each kept anchor, in order; one more row takes the pairs of all others, and is cut off
        size = len(kept) + 1
        places = torch.full((problem.num_anchors,), len(kept), device=problem.device)
        places[kept] = torch.arange(len(kept), device=problem.device)
        a1, a2 = places[a1], places[a2]
    # pair (i, j) is entry i M + j of the flat matrix; a pair listed twice, or in both lists, counts once
    positives = torch.zeros(size, num_rows, dtype=problem.dtype, device=problem.device)
    positives.view(-1).index_fill_(0, torch.add(p, a1, alpha=num_rows), 1)
    pairs = positives.clone()
    pairs.view(-1).index_fill_(0, torch.add(n, a2, alpha=num_rows), 1)
    return (positives, pairs) if kept is None else (positives[:-1], pairs[:-1])


def times_share(push: Tensor, of_pushes: Tensor, p: Tensor, number: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Return ``log2 D_i`` times ``sum_j p_ij / n_i``, ``(A,)``, and its divisor; L_out has this factor.

    It differs from 1 only for a target whose ``n_i`` is the number of positives.
    """
    if problem.summation == "in" or problem.target is None or problem.target.normalization != "count":
        return push, of_pushes
    share = p.sum(dim=1) / number
    return push * share, of_pushes / share


def weighted(t: Tensor, p: Tensor, problem: Problem) -> Tensor:
    """Return ``log2(p_ij 2^t_ij)``, ``(A, M)``, in memory of its own; any value where ``p_ij`` is 0."""
    return t.clone() if problem.target is None else t + torch.where(p > 0, p, 1).log2_()


def one_positive(
    t: Tensor, p: Tensor, positives: Tensor, negatives: Tensor, number: Tensor, problem: Problem
) -> tuple[Tensor, Tensor]:
    """Return the losses ``(A,)`` and ``W`` ``(A, M)`` for the denominator ``D_ip = exp(s_ip - eps) + S_i``.

    ``S_i`` is the sum of ``exp(s_in)`` over ``N(i)``, ``eps`` the margin. With ``q_p = exp(s_ip - eps) / D_ip``, which
    is ``sigmoid(s_ip - log S_i - eps)``, and the share ``X_p``, which is ``w_p / n_i`` for L_out and
    ``w_p q_p / sum_{p in P(i)} w_p q_p`` for L_in, with the weights ``w_p`` of the positives:

        out:  l_i = -sum_p w_p (log(q_p) + eps) / n_i   W_ip = -X_p (1 - q_p)
        in:   l_i = -log( sum_p w_p q_p / n_i ) - eps   W_in = exp(s_in) / S_i * sum_p X_p (1 - q_p)
    """
    log_others, e, others = masked_exponentials(t.clone(), negatives, shifted=True)
    if problem.margin:
        log_others.add_(problem.margin / LN_2)
    # log q and 1 - q, (A, M); a pair listed as positive and as negative counts once: its D_ip is S_i
    margin = t.sub_(log_others[:, None]).mul_(LN_2)
    log_q, miss = F.logsigmoid(margin), torch.sigmoid(-margin)
    if problem.pairs is not None:
        both = positives & negatives
        log_q, miss = torch.where(both, margin, log_q), miss.masked_fill_(both, 1)
    if problem.summation == "out":
        losses = torch.where(positives, -log_q, 0).mul_(p).sum(dim=1).div_(number)
        miss = miss.mul_(p).div_(number[:, None])
    else:
        log_total, shares, of_shares = masked_exponentials(
            weighted(log_q.div_(LN_2), p, problem), positives, shifted=True
        )
        losses, miss = number.log2().sub_(log_total).mul_(LN_2), miss.mul_(shares).div_(of_shares[:, None])
    if problem.margin:
        # sum_p w_p / n_i is not 1 for the normalization "count"
        share = p.sum(dim=1).div_(number) if problem.summation == "out" else 1
        losses.sub_(share * problem.margin)
    return losses, e.mul_((miss.sum(dim=1) / others)[:, None]).sub_(miss)


def masked_exponentials(t: Tensor, mask: Tensor | int | None, *, shifted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``log2 sum_j 2^t_ij``, ``(A,)``, and its derivative: a matrix ``(A, M)`` over a divisor ``(A,)``.

    ``t`` ``(A, M)`` is overwritten. The sums are over the pairs of a mask ``(A, M)``, over all pairs but a diagonal if
    ``mask`` is its offset, or over all pairs if it is None; the derivative is 0 elsewhere. An empty sum gives minus
    infinity and zeros. ``shifted`` is true if ``2^t`` could leave the range of the dtype.
    """
    # 2^(t - shift), with the largest t of a row as the shift, 0 for a row without pairs
    if isinstance(mask, Tensor):
        t.masked_fill_(~mask, -torch.inf)
    elif mask is not None:
        t.diagonal(mask).fill_(-torch.inf)
    shift = None
    if shifted and t.shape[1]:
        shift = t.amax(dim=1)
        shift = shift.masked_fill_(shift == -torch.inf, 0)
        t.sub_(shift[:, None])
    e = t.exp2_()
    total = e.sum(dim=1)
    divisor = total.clamp(min=torch.finfo(t.dtype).tiny)  # of an empty sum, whose matrix is 0
    log_total = total.log2_()
    return log_total if shift is None else log_total.add_(shift), e, divisor


def gradients_of(
    upstream: Tensor,
    problem: Problem,
    requested: tuple[bool, bool],
    half: bool,
    symmetric: bool,
    valid: Tensor,
    kept: Tensor | None,
    z: Tensor,
    norms: Tensor | None,
    rows: Tensor,
    row_norms: Tensor | None,
    *saved: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of the embeddings ``(N, D)`` and of the references ``(M, D)``, None if not requested."""
    with full_precision(problem.device):
        # 1. G_ij = u_i W_ij / tau, (A, M), with symmetric matrices plus u_j W_ji / tau
        if kept is not None:
            upstream = upstream[kept]
        upstream = torch.where(valid, upstream, 0) / problem.temperature
        if not half:
            number = len(saved) // 2
            g = Derivative(saved[:number], saved[number:], symmetric).times(upstream)
        # 2. d L / d z: G z_rows for the anchors, G^T z_anchors for the contrasted rows
        of_rows: Tensor | None = None
        if half:
            of_z = upper_triangle.gradient_of(upstream, z, problem, *saved)
        elif symmetric:
            of_z = g @ z
        elif problem.symmetric and kept is None:
            of_z = (g + g.T) @ z if len(z) <= TRANSPOSED_ROWS else torch.addmm(g @ z, g.T, z)
        else:
            of_z = torch.zeros_like(z)
            if kept is None:
                anchors_of(of_z, problem).copy_(g @ rows)
            else:
                of_z.index_copy_(0, kept, g @ rows)
            if problem.references is None:
                of_z.addmm_(g.T, anchors_of(z, problem, kept))
            elif requested[1]:
                of_rows = g.T @ anchors_of(z, problem, kept)
        # 3. d L / d x = (d L / d z - z (z . d L / d z)) / |x|
        dtype = problem.embeddings.dtype
        of_embeddings = through_norms(of_z, z, norms).to(dtype) if requested[0] else None
        return of_embeddings, None if of_rows is None else through_norms(of_rows, rows, row_norms).to(dtype)


def unit_rows(rows: Tensor, problem: Problem) -> tuple[Tensor, Tensor | None]:
    """Return rows in the dtype of the losses, normalised if the options say so, and their lengths ``(N, 1)``."""
    if rows.dtype != problem.dtype:
        rows = rows.to(problem.dtype)
    if not problem.normalize:
        return rows, None
    norms = lengths(rows)
    return rows / norms, norms


def through_norms(gradient: Tensor, z: Tensor, norms: Tensor | None) -> Tensor:
    """Return the gradient of rows from the gradient of the unit rows ``z``, which is overwritten."""
    if norms is None:
        return gradient
    along = (gradient * z).sum(dim=1, keepdim=True)
    return gradient.sub_(z * along).div_(norms)


def anchors_of(rows: Tensor, problem: Problem, kept: Tensor | None = None) -> Tensor:
    """Return the rows of the embeddings that are anchors, a view; with ``kept`` a copy of these rows."""
    if kept is not None:
        return rows.index_select(0, kept)
    return rows if problem.start is None else rows[problem.start : problem.start + problem.num_anchors]
