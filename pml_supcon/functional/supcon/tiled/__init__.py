"""The ``tiled`` backend: exact in linear memory on any device, in plain PyTorch.

Similarities are computed in tiles; no tile outlives its step. Rows are sorted by label, so that on the CPU few tiles
hold positives: a tile without positives costs a matrix product, one exponential per pair and its sums. If rows are
contrasted with themselves, ``s`` is symmetric and one tile serves its rows and its columns. The forward pass keeps sums
per anchor; the backward pass computes the tiles again.

- ``layout``: the tiles over sorted labels, and the masks of positives;
- ``operator``: the forward and backward passes as operators, opaque to ``torch.compile``;
- ``passes``: the three passes over the tiles (negatives, positives, gradients);
- ``statistics``: the sums per anchor, and the losses and gradients that follow from them;
- ``weighted_layout``, ``weighted_passes``, ``weighted_statistics``: the same for the weights of a target, over unsorted
  tiles, of which each can hold positives;
- ``bilinear``: the positives of soft labels, without tiles;
- ``listed``: the loss of listed pairs, without tiles.
"""

import torch

from pml_supcon.functional.supcon import dense, reference
from pml_supcon.functional.supcon.execution import needs_shift, scale_by_sqrt_temperature
from pml_supcon.functional.supcon.problem import AnchorLosses, Problem
from pml_supcon.functional.supcon.tiled import listed
from pml_supcon.functional.supcon.tiled.layout import Layout
from pml_supcon.functional.supcon.tiled.operator import tiled_losses, weighted_losses
from pml_supcon.functional.supcon.tiled.statistics import Formula

__all__ = ["refusal", "anchor_losses"]  # noqa: RUF022 - the order of the calls


def refusal(problem: Problem) -> str | None:
    """Return the reason why this backend cannot solve the problem, or None."""
    if problem.similarity is not None:
        return "a similarity other than the dot product needs the whole matrix"
    return problem.transform_refusal


def anchor_losses(problem: Problem) -> AnchorLosses:
    """Return per-anchor losses in ``O(N D)`` extra memory; differentiable once.

    Listed pairs take memory linear in their number. Beyond ``listed.DENSE_SHARE`` of all pairs the dense matrix takes
    less, and ``dense`` computes the losses.
    """
    if problem.pairs is not None:
        if listed.is_sparse(problem):
            return listed.anchor_losses(problem)
        matrix = reference if dense.refusal(problem) else dense
        terms: AnchorLosses = matrix.anchor_losses(problem)
        return terms
    if problem.target is not None:
        return weighted_anchor_losses(problem)
    # sort both sides by label, so that the pairs of one class are neighbours
    layout, anchor_order, row_order = Layout.of(problem)
    # scale both sides, (A, D) and (M, D), so that their products are s_ij = z_i . z_j / tau
    anchors, rows = problem.prepared_rows()
    rows = scale_by_sqrt_temperature(rows[row_order], problem.temperature)
    losses, valid, _ = tiled_losses(
        rows if layout.symmetric else scale_by_sqrt_temperature(anchors[anchor_order], problem.temperature),
        None if layout.symmetric else rows,
        layout.anchor_labels,
        layout.row_labels,
        layout.anchor_ids,
        layout.row_ids,
        *(layout.cap or (None, None, None)),
        layout.row_sizes,
        *Formula.of(problem),
        needs_shift(problem),
    )
    # back to the caller's order
    back = torch.empty_like(anchor_order).scatter_(0, anchor_order, torch.arange(losses.shape[0], device=losses.device))
    return AnchorLosses(losses[back], valid[back])


def weighted_anchor_losses(problem: Problem) -> AnchorLosses:
    """Return per-anchor losses for the weights of a target, over tiles in the order of the batch."""
    # scale both sides, (A, D) and (M, D), so that their products are s_ij = z_i . z_j / tau
    anchors, rows = (scale_by_sqrt_temperature(side, problem.temperature) for side in problem.prepared_rows())
    losses, valid, _ = weighted_losses(
        anchors,
        None if problem.symmetric else rows,
        problem.anchor_labels,
        problem.row_labels,
        problem.first_anchor,
        problem.target,
        *Formula.of(problem),
        needs_shift(problem),
    )
    return AnchorLosses(losses, valid)
