"""Exact in linear memory on any device, in plain torch: tiles of similarities are made, used and dropped.

Rows are sorted by label, so that on the CPU only few tiles hold positives ("boxes" within them). A tile without
positives costs a product, one exponential per pair and its sums. Where rows are contrasted with themselves a tile
serves its rows and its columns. The forward pass keeps per-anchor statistics; the backward pass makes the tiles again.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pml_supcon.functional.supcon.problem import AnchorLosses, Problem

TILE = 512

#: `exp(s)` and its sums stay well inside float32 and float64 without a shift up to this `|s|`.
SAFE_EXPONENT = {torch.float32: 60.0, torch.float64: 500.0}


def refusal(problem: Problem) -> str | None:
    """Why this backend cannot solve the problem, or None."""
    if problem.similarity is not None:
        return "a similarity other than the dot product needs the whole matrix"
    if problem.pairs is not None:
        return "indices_tuple lists pairs, which it does not read"
    return None


def anchor_losses(problem: Problem) -> AnchorLosses:
    """Per-anchor losses in `O(N D)` extra memory; differentiable once."""
    assert problem.anchor_labels is not None  # for the type checker: no pairs, so labels
    assert problem.row_labels is not None
    row_order = torch.argsort(problem.row_labels, stable=True)
    anchor_order = row_order if problem.symmetric else torch.argsort(problem.anchor_labels, stable=True)
    layout = Layout.of(problem, anchor_order, row_order)
    rows = problem.rows[row_order]
    anchors = rows if layout.symmetric else problem.anchors[anchor_order]
    with torch.autocast(problem.anchors.device.type, enabled=False):
        losses, valid = _TiledSupCon.apply(anchors, rows, layout)
    back = torch.argsort(anchor_order)
    return AnchorLosses(losses[back], valid[back])


@dataclass(frozen=True)
class Layout:
    """Who is contrasted with whom, in sorted order: labels, identities and ranks of anchors and rows."""

    anchor_labels: Tensor
    row_labels: Tensor
    anchor_ids: Tensor | None  # with row_ids: an anchor is not contrasted with the row of its own id
    row_ids: Tensor | None
    cap: tuple[Tensor, Tensor, Tensor] | None
    symmetric: bool
    shifted: bool  # exponentials need a shift: similarities may leave the exponent's safe range
    temperature: float
    summation: str
    denominator: str
    sorted_lists: tuple[list[int], list[int]] | None  # the labels on the host, where they are there anyway

    @staticmethod
    def of(problem: Problem, anchor_order: Tensor, row_order: Tensor) -> "Layout":
        """The layout of a problem whose anchors and rows are put in these orders."""
        assert problem.anchor_labels is not None
        assert problem.row_labels is not None
        anchor_labels, row_labels = problem.anchor_labels[anchor_order], problem.row_labels[row_order]
        cap = problem.cap
        on_host = row_labels.device.type == "cpu"
        return Layout(
            anchor_labels=anchor_labels,
            row_labels=row_labels,
            anchor_ids=anchor_order if problem.anchors_are_rows else None,
            row_ids=row_order if problem.anchors_are_rows else None,
            cap=cap and (cap.anchor_rank[anchor_order], cap.anchor_limit[anchor_order], cap.row_rank[row_order]),
            symmetric=problem.symmetric,
            shifted=not problem.bound <= SAFE_EXPONENT[problem.rows.dtype],
            temperature=problem.temperature,
            summation=problem.summation,
            denominator=problem.denominator,
            sorted_lists=(anchor_labels.tolist(), row_labels.tolist()) if on_host else None,
        )

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """The tiles that cover all pairs; with symmetry those on and above the diagonal."""
        for top in range(0, len(self.anchor_labels), TILE):
            anchors = slice(top, min(top + TILE, len(self.anchor_labels)))
            for left in range(top if self.symmetric else 0, len(self.row_labels), TILE):
                yield anchors, slice(left, min(left + TILE, len(self.row_labels)))

    def box(self, anchors: slice, rows: slice) -> tuple[slice, slice] | None:
        """The part of a tile that can hold equal labels; the whole tile where the labels are not on the host."""
        if self.sorted_lists is None:
            return anchors, rows
        a, r = self.sorted_lists
        low, high = max(a[anchors.start], r[rows.start]), min(a[anchors.stop - 1], r[rows.stop - 1])
        found = tuple(
            slice(
                bisect_left(labels, low, part.start, part.stop),
                bisect_right(labels, high, part.start, part.stop),
            )
            for labels, part in ((a, anchors), (r, rows))
        )
        return None if any(part.start >= part.stop for part in found) else (found[0], found[1])

    def masks(self, anchors: slice, rows: slice) -> tuple[Tensor, Tensor]:
        """Which pairs of a box have equal labels, and which of them are positives."""
        same = self.anchor_labels[anchors, None] == self.row_labels[rows]
        positives = same
        if self.anchor_ids is not None and self.row_ids is not None:
            positives = positives & (self.anchor_ids[anchors, None] != self.row_ids[rows])
        if self.cap is not None:
            rank, limit, row_rank = self.cap[0][anchors, None], self.cap[1][anchors, None], self.cap[2][rows]
            positives = positives & ((row_rank < limit) | (row_rank == rank))
        return same, positives


class _Statistics:
    """Per-anchor sums that the forward pass gathers, all logarithms; `(A,)` each."""

    def __init__(self, anchors: Tensor, layout: Layout) -> None:
        self.layout = layout
        self.number = anchors.new_zeros(len(anchors))  # of positives
        self.log_neg = anchors.new_full((len(anchors),), -torch.inf)  # log sum over N(i) of exp(s)
        self.log_pos = self.log_neg.clone()  # log sum over P(i) of exp(x), x as in `add_positives`
        self.linear = torch.zeros_like(self.log_neg)  # sum over P(i) of the terms of L_out
        self.log_share = self.log_neg.clone()  # for "one_positive": see `negative_share`

    def add_positives(self, s: Tensor, positives: Tensor, anchors: slice) -> None:
        """Add the positives of a box of similarities `s`; for "one_positive" `log_neg` must be complete."""
        layout = self.layout
        self.number[anchors] += positives.sum(dim=1)
        x = s
        if layout.denominator == "one_positive":
            margin = s - self.log_neg[anchors, None]
            x = F.logsigmoid(margin)  # log of exp(s) / (exp(s) + sum over N(i))
            log_share = F.logsigmoid(-margin) if layout.summation == "out" else x + F.logsigmoid(-margin)
            log_share = log_share.masked_fill(~positives, -torch.inf).logsumexp(dim=1)
            self.log_share[anchors] = torch.logaddexp(self.log_share[anchors], log_share)
        if layout.summation == "out":
            self.linear[anchors] -= torch.where(positives, x, 0).sum(dim=1)
        log_sum = x.masked_fill(~positives, -torch.inf).logsumexp(dim=1)
        self.log_pos[anchors] = torch.logaddexp(self.log_pos[anchors], log_sum)

    def losses(self) -> AnchorLosses:
        """Equations 2 and 3 from the sums."""
        layout = self.layout
        valid = self.number > 0
        if layout.denominator == "negatives":
            valid = valid & (self.log_neg != -torch.inf)
        number = self.number.clamp(min=1)
        terms = self.linear / number if layout.summation == "out" else number.log() - self.log_pos
        if layout.denominator != "one_positive":
            terms = terms + self.log_denominator()
        return AnchorLosses(torch.where(valid, terms, 0), valid)

    def log_denominator(self) -> Tensor:
        """`log D_i`, where it is one for all positives."""
        return torch.logaddexp(self.log_neg, self.log_pos) if self.layout.denominator == "all" else self.log_neg

    def negative_share(self) -> Tensor:
        """`k_i` in `d l_i / d s_in = k_i exp(s_in) / sum over N(i) of exp(s)`."""
        if self.layout.denominator == "all":
            return (self.log_neg - self.log_denominator()).exp()
        if self.layout.denominator == "negatives":
            return torch.ones_like(self.log_neg)
        if self.layout.summation == "out":
            return self.log_share.exp() / self.number.clamp(min=1)
        return torch.where(self.number > 0, (self.log_share - self.log_pos).exp(), 0)

    def positive_gradient(self, s: Tensor, anchors: slice) -> Tensor:
        """`d l_i / d s_ip` over a box of similarities, as if every pair were a positive."""
        layout = self.layout
        number = self.number[anchors, None].clamp(min=1)
        if layout.denominator == "one_positive":
            margin = s - self.log_neg[anchors, None]
            if layout.summation == "out":
                return -torch.sigmoid(-margin) / number
            return -(F.logsigmoid(margin) - self.log_pos[anchors, None]).exp() * torch.sigmoid(-margin)
        pull = 1 / number if layout.summation == "out" else (s - self.log_pos[anchors, None]).exp()
        if layout.denominator == "negatives":
            return (-pull).expand_as(s)
        return (s - self.log_denominator()[anchors, None]).exp() - pull


class _TiledSupCon(torch.autograd.Function):
    """Losses of sorted anchors, and their gradient by making the tiles a second time."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, rows: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        statistics = gather_statistics(anchors, rows, layout)
        losses, valid = statistics.losses()
        ctx.save_for_backward(anchors, rows, valid)
        ctx.layout, ctx.statistics = layout, statistics
        ctx.mark_non_differentiable(valid)
        return losses, valid

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None]:
        anchors, rows, valid = ctx.saved_tensors
        return (*_TiledGradient.apply(anchors, rows, upstream, valid, ctx.layout, ctx.statistics), None)


class _TiledGradient(torch.autograd.Function):
    """The gradient, as a function of its own so that a derivative of it is refused rather than taken for 0."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        rows: Tensor,
        upstream: Tensor,
        valid: Tensor,
        layout: Layout,
        statistics: _Statistics,
    ) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(anchors.device.type, enabled=False):
            return tiled_gradient(anchors, rows, layout, statistics, torch.where(valid, upstream, 0))

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("The tiled backend is differentiable once; a second derivative needs backend='reference'")


def similarities(anchors: Tensor, rows: Tensor, tile: tuple[slice, slice]) -> Tensor:
    """One tile of `s`; `anchors` are already divided by the temperature."""
    return anchors[tile[0]] @ rows[tile[1]].T


def within(tile: tuple[slice, slice], box: tuple[slice, slice]) -> tuple[slice, slice]:
    """A box's slices relative to its tile."""
    (a, r), (box_a, box_r) = tile, box
    return slice(box_a.start - a.start, box_a.stop - a.start), slice(box_r.start - r.start, box_r.stop - r.start)


def gather_statistics(anchors: Tensor, rows: Tensor, layout: Layout) -> _Statistics:
    """The forward pass: sums over negatives tile by tile, sums over positives box by box."""
    statistics = _Statistics(anchors, layout)
    scaled = anchors / layout.temperature
    sums = torch.zeros_like(statistics.log_neg)
    boxes = []
    for tile in layout.tiles():
        s = similarities(scaled, rows, tile)
        twice = layout.symmetric and tile[0] != tile[1]
        box = layout.box(*tile)
        if box is not None:
            boxes.append((box, twice))
        if layout.shifted:
            if box is not None:
                s[within(tile, box)].masked_fill_(layout.masks(*box)[0], -torch.inf)
            for part, dim in ((tile[0], 1), (tile[1], 0))[: 1 + twice]:
                statistics.log_neg[part] = torch.logaddexp(statistics.log_neg[part], s.logsumexp(dim=dim))
            continue
        s.exp_()
        if box is not None:
            s[within(tile, box)].masked_fill_(layout.masks(*box)[0], 0)
        sums[tile[0]] += s.sum(dim=1)
        if twice:
            sums[tile[1]] += s.sum(dim=0)
    if not layout.shifted:
        statistics.log_neg = sums.log()
    for box, twice in boxes:
        s = similarities(scaled, rows, box)
        statistics.add_positives(s, layout.masks(*box)[1], box[0])
        if twice:
            statistics.add_positives(s.T, layout.masks(*box[::-1])[1], box[1])
    return statistics


def tiled_gradient(
    anchors: Tensor, rows: Tensor, layout: Layout, statistics: _Statistics, upstream: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The backward pass: `dL/dz = W z` tile by tile, `W_ij` the weight of the pair for both of its ends."""
    scaled = anchors / layout.temperature
    grad_anchors = torch.zeros_like(anchors)
    grad_rows = grad_anchors if layout.symmetric else torch.zeros_like(rows)
    no_negatives = statistics.log_neg == -torch.inf
    log_neg = statistics.log_neg.masked_fill(no_negatives, 0)
    weight = (upstream * statistics.negative_share()).masked_fill(no_negatives, 0)
    if not layout.shifted:
        weight = weight * (-log_neg).exp()
    for tile in layout.tiles():
        a, r = tile
        s = similarities(scaled, rows, tile)
        box = layout.box(*tile)
        corrected = None if box is None else box_weights(s[within(tile, box)], box, layout, statistics, upstream)
        if not layout.shifted:
            both = weight[a, None] + weight[r] if layout.symmetric else weight[a, None]
            w = s.exp_().mul_(both)
        else:
            w = (s - log_neg[a, None]).exp() * weight[a, None]
            if layout.symmetric:
                w += (s - log_neg[r]).exp() * weight[r]
        if box is not None and corrected is not None:
            same, pulls = corrected
            inside = w[within(tile, box)]
            inside.copy_(torch.where(same, pulls, inside))
        grad_anchors[a] += w @ rows[r]
        if not layout.symmetric or a != r:
            grad_rows[r] += w.T @ anchors[a]
    grad_anchors /= layout.temperature
    if layout.symmetric:
        return grad_anchors, None
    return grad_anchors, grad_rows / layout.temperature


def box_weights(
    s: Tensor, box: tuple[slice, slice], layout: Layout, statistics: _Statistics, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    """Which pairs of a box share a label, and the weights that these have: their pull, or 0 where dropped."""
    a, r = box
    same, positives = layout.masks(a, r)
    weights = torch.where(positives, upstream[a, None] * statistics.positive_gradient(s, a), 0)
    if layout.symmetric:
        positives = layout.masks(r, a)[1]
        weights = weights + torch.where(positives, upstream[r, None] * statistics.positive_gradient(s.T, r), 0).T
    return same, weights
