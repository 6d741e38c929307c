"""The part of the ``dense`` backend for rows contrasted with themselves: half of the matrix, in strips.

``s`` and the mask of equal labels are symmetric: a pair on or above the diagonal serves the anchors of both its ends. A
strip of ``STRIP`` anchors, which fits a cache, has the columns from its first anchor on:

    strip 0    # # # # # #          total_i    = sum over the columns in the strip of i, and over the strips above
    strip 1        # # # #
    strip 2            # #
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pml_supcon.functional.supcon.problem import Problem

#: The number of anchors of a strip.
STRIP = 256


def strips(matrix: Tensor, num_rows: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the anchors ``i`` of each strip, and its part ``(len(i), N - i.start)`` of the flat matrix."""
    end = 0
    for top in range(0, num_rows, STRIP):
        anchors, start = slice(top, min(top + STRIP, num_rows)), end
        end = start + (anchors.stop - top) * (num_rows - top)
        yield anchors, matrix[start:end].view(anchors.stop - top, num_rows - top)


def num_entries(num_rows: int) -> int:
    """Return the number of entries of all strips, about half of ``N^2``."""
    return sum((min(top + STRIP, num_rows) - top) * (num_rows - top) for top in range(0, num_rows, STRIP))


def losses_of(z: Tensor, problem: Problem) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return the losses ``(N,)``, their validity ``(N,)``, and what ``gradient_of`` takes, from unit rows ``(N, D)``.

    That is ``exp(s)`` of the pairs in the strips, flat, and two divisors ``(N,)``: ``D_i``, and ``|P(i)|`` for L_out or
    the sum of ``exp(s_ip)`` over ``P(i)`` for L_in. The denominator is "all", and ``exp(s)`` needs no shift.
    """
    out = problem.summation == "out"
    scaled = z * (1 / (problem.temperature * math.log(2)))
    matrix = z.new_empty(num_entries(len(z)))
    total, pull, number = z.new_zeros(3, len(z))
    for anchors, t in strips(matrix, len(z)):
        # 1. t_ij = s_ij / ln 2, (len(i), N - i.start), and the mask of the positives
        torch.mm(scaled[anchors], z[anchors.start :].T, out=t)
        positives = equal_labels(problem, anchors)
        # 2. sums of t_ip (out) or of exp(s_ip) (in), and of exp(s_ij) = 2^t_ij, without the anchor itself
        if out:
            add_to_ends(pull, torch.where(positives, t, 0), anchors)
        t.exp2_().diagonal().fill_(0)
        if not out:
            add_to_ends(pull, torch.where(positives, t, 0), anchors)
        add_to_ends(total, t, anchors)
        add_to_ends(number, positives, anchors)
    # 3. out: l_i = log D_i - the mean of s_ip;  in: l_i = log D_i - log of the mean of exp(s_ip)
    valid = number > 0
    number.clamp_(min=1)
    divisor = number
    mean = pull / number
    if not out:
        mean, divisor = mean.log2_(), pull.clamp_(min=torch.finfo(z.dtype).tiny)
    losses = torch.where(valid, (total.log2() - mean) * math.log(2), 0)
    return losses, valid, (matrix, total, divisor)


def gradient_of(
    upstream: Tensor, z: Tensor, problem: Problem, matrix: Tensor, total: Tensor, divisor: Tensor
) -> Tensor:
    """Return ``G z`` ``(N, D)`` with ``G_ij = u_i d l_i / d s_ij + u_j d l_j / d s_ji``, for ``u`` ``(N,)``."""
    of_z = torch.zeros_like(z)
    push, pull = upstream / total, upstream / divisor
    buffer = z.new_empty(min(STRIP, len(z)) * len(z))
    for anchors, e in strips(matrix, len(z)):
        # 1. G_ij = exp(s_ij) (u_i / D_i + u_j / D_j), minus 1 (out) or exp(s_ij) (in) times (u_i / d_i + u_j / d_j) for
        # positives, with the second divisor d
        g = buffer[: e.numel()].view_as(e)
        torch.add(push[anchors, None], push[anchors.start :], out=g).mul_(e)
        pulls = torch.where(equal_labels(problem, anchors), pull[anchors, None] + pull[anchors.start :], 0)
        g.sub_(pulls if problem.summation == "out" else pulls.mul_(e))
        # 2. G z: of the anchors, and G^T z of the columns after them
        height = len(e)
        of_z[anchors].addmm_(g, z[anchors.start :])
        if anchors.stop < len(z):
            of_z[anchors.stop :].addmm_(g[:, height:].T, z[anchors])
    return of_z


def equal_labels(problem: Problem, anchors: slice) -> Tensor:
    """Return the mask of the positives in a strip, bool ``(len(anchors), N - anchors.start)``."""
    labels = problem.row_labels
    assert labels is not None  # for the type checker: no pairs, so labels
    same = labels[anchors, None] == labels[anchors.start :]
    same.diagonal().fill_(False)
    return same


def add_to_ends(sums: Tensor, terms: Tensor, anchors: slice) -> None:
    """Add the sums over a strip's columns for its anchors, and over its anchors for the columns after them."""
    sums[anchors] += terms.sum(dim=1)
    sums[anchors.stop :] += terms[:, len(terms) :].sum(dim=0)
