"""The definition: dense, any float dtype, differentiable any number of times, never optimised."""

import torch
from torch import Tensor

from pml_supcon.functional.supcon import checks
from pml_supcon.functional.supcon.classes import class_sizes
from pml_supcon.functional.supcon.execution import full_precision, products
from pml_supcon.functional.supcon.problem import AnchorLosses, Problem


def refusal(problem: Problem) -> str | None:
    """Return None: this backend solves every problem."""
    return None


def anchor_losses(problem: Problem) -> AnchorLosses:
    """Return the per-anchor losses, from the dense ``(A, M)`` matrix of similarities."""
    with full_precision(problem.device):
        similarity = problem.similarity or products
        s = similarity(*problem.prepared_rows())
        checks.check_similarities(s, (problem.num_anchors, problem.num_rows))
        s = s / (problem.temperature if problem.similarity is None else problem.given_temperature)
        weights, positives, negatives = pair_weights(problem)
        number = pair_numbers(problem, weights)
        return dense_losses(s, weights, number, positives, negatives, problem)


def pair_weights(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights ``w_ij`` of the positives, and ``P(i)`` and ``N(i)`` as masks, all ``(A, M)``."""
    if problem.target is None:
        positives, negatives = pair_masks(problem)
        return positives.to(problem.dtype), positives, negatives
    weights = label_weights(problem)
    positives = weights > 0
    negatives = ~positives
    if problem.first_anchor is not None:
        negatives.diagonal(problem.first_anchor).fill_(False)
    return weights, positives, negatives


def label_weights(problem: Problem) -> Tensor:
    """Return the weights that labels give to all pairs, ``(A, M)``; 0 for an anchor with itself.

    They are the weights of a target, or 1 for equal labels and 0 for others.
    """
    assert problem.anchor_labels is not None  # for the type checker: labels, not pairs
    assert problem.row_labels is not None
    if problem.target is not None:
        weights = checks.block_weights(problem.target, problem.anchor_labels, problem.row_labels, problem.dtype)
    else:
        weights = (problem.anchor_labels[:, None] == problem.row_labels).to(problem.dtype)
    if problem.first_anchor is not None:
        weights.diagonal(problem.first_anchor).fill_(0)
    return weights


def pair_numbers(problem: Problem, weights: Tensor) -> Tensor:
    """Return ``W_i``, ``(A,)``: the sum of the weights of the positives, or their number; it is 0 without any."""
    counts = problem.target is not None and problem.target.normalization == "count"
    number: Tensor = ((weights > 0).to(weights.dtype) if counts else weights).sum(dim=1)
    return number


def pair_masks(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return ``P(i)`` and ``N(i)`` of class labels or listed pairs as two ``(A, M)`` masks."""
    num_anchors, num_rows = problem.num_anchors, problem.num_rows
    if problem.pairs is not None:
        a1, p, a2, n = problem.pairs
        positives = torch.zeros(num_anchors, num_rows, dtype=torch.bool, device=problem.device)
        negatives = positives.clone()
        positives[a1, p] = True
        negatives[a2, n] = True
        return positives, negatives
    assert problem.anchor_labels is not None  # for the type checker: a problem has labels or pairs
    assert problem.row_labels is not None
    positives = problem.anchor_labels[:, None] == problem.row_labels
    negatives = ~positives
    if problem.first_anchor is not None:
        positives.diagonal(problem.first_anchor).fill_(False)
    if problem.cap is not None:
        positives &= problem.cap.keeps(slice(None), slice(None))
    return positives, negatives


def log_class_sizes(problem: Problem, positives: Tensor, number: Tensor) -> Tensor:
    """Return the log of the number of rows of each pair's class in a denominator, ``(A, M)``.

    For the positives it is ``|P(i)|``, from ``number`` ``(A,)``; for the negatives the number of contrasted rows.
    """
    assert problem.row_labels is not None  # for the type checker: no pairs, so labels
    sizes = class_sizes(problem.row_labels).to(number.dtype)
    return torch.where(positives, number.clamp(min=1)[:, None], sizes).log()


def dense_losses(
    s: Tensor,
    weights: Tensor,
    number: Tensor,
    positives: Tensor,
    negatives: Tensor,
    problem: Problem,
) -> AnchorLosses:
    """Return the losses of equations 2 and 3, from similarities, weights and masks ``(A, M)``, and ``W_i`` ``(A,)``."""
    denominator = problem.denominator
    # 1. log D_ip, (A, 1), or (A, M) for "one_positive": log( exp(s_ip - margin) + sum_{n in N(i)} exp(s_in) )
    if denominator == "all":
        balanced = s - log_class_sizes(problem, positives, number) if problem.class_balanced else s
        log_denominator = masked_logsumexp(balanced, positives | negatives)
    else:
        log_denominator = log_negatives = masked_logsumexp(s, negatives)
    if denominator == "one_positive":
        some = log_negatives != -torch.inf
        own = s - problem.margin if problem.margin else s
        log_denominator = torch.where(some, torch.logaddexp(own, torch.where(some, log_negatives, 0.0)), own)
        log_denominator = torch.where(negatives, log_negatives, log_denominator)  # a pair listed as both counts once
    # 2. The anchors with a positive and a non-empty denominator, (A,).
    valid = number > 0
    number = torch.where(valid, number, 1)
    if denominator == "negatives":
        valid = valid & negatives.any(dim=1)
    # 3. The mean over P(i), with weights w_ip, of s_ip - log D_ip (equation 2), or the log of the mean of
    # exp(s_ip) / D_ip (equation 3).
    used = positives & valid[:, None]
    log_prob = torch.where(used, s - log_denominator, 0.0)
    if problem.summation == "out":
        losses = -(weights * log_prob).sum(dim=1) / number
    else:
        log_weights = torch.where(used, weights, 1.0).log()
        losses = number.log() - masked_logsumexp(log_prob + log_weights, used)[:, 0]
    return AnchorLosses(torch.where(valid, losses, 0.0), valid)


def masked_logsumexp(x: Tensor, mask: Tensor) -> Tensor:
    """Return the log of the sum of ``exp(x)`` over the masked entries of each row, ``(A, 1)``.

    It is minus infinity for a row without masked entries, with gradient 0; ``torch.logsumexp`` has a NaN gradient
    there.
    """
    if x.shape[1] == 0:
        return x.sum(dim=1, keepdim=True) - torch.inf  # keeps the graph
    x = x.masked_fill(~mask, -torch.inf)
    shift = x.detach().amax(dim=1, keepdim=True)
    shift = shift.masked_fill(shift == -torch.inf, 0.0)
    total = (x - shift).exp().sum(dim=1, keepdim=True)
    some = mask.any(dim=1, keepdim=True)
    return torch.where(some, torch.where(some, total, 1.0).log() + shift, -torch.inf)
