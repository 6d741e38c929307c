"""The three passes of the tiled backend, each over some of the tiles: negatives, positives, gradients."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pml_supcon.functional.supcon.tiled.layout import Layout, Tile, within
from pml_supcon.functional.supcon.tiled.statistics import Statistics


class RowsBySlice(Protocol):
    """RowsBySlice by their place in the layout: a tensor, or what knows where the rows of a slice are kept."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        """The rows `(len(rows), D)`, to be read or added to."""


class TilePasses(NamedTuple):
    """What the passes read; each is given its tiles, so that threads and processes can share them.

    Attributes:
        anchors: sorted anchors.
        rows: sorted contrasted rows; the products of both are the similarities.
        layout: who is whose positive.
        dtype: of the rows.
        shifted: similarities may leave the exponent's safe range.
    """

    anchors: RowsBySlice
    rows: RowsBySlice
    layout: Layout
    dtype: torch.dtype
    shifted: bool

    def log_negatives(self, tiles: Sequence[tuple[Tile, list[Tile]]]) -> Tensor:
        """Log of the sum of `exp(s)` over each anchor's negatives in these tiles, `(A,)`."""
        nothing = -torch.inf if self.shifted else 0
        sums = torch.full_like(self.layout.anchor_labels, nothing, dtype=self.dtype)
        for (a, r), boxes in tiles:
            s = self.anchors[a] @ self.rows[r].T
            if not self.shifted:
                s.exp_()
            for box in boxes:
                s[within((a, r), box)].masked_fill_(self.layout.same(box), nothing)
            for part, dim in ((a, 1), (r, 0))[: 1 + (self.layout.symmetric and a != r)]:
                if self.shifted:
                    sums[part] = torch.logaddexp(sums[part], s.logsumexp(dim=dim))
                else:
                    sums[part] += s.sum(dim=dim)
        return sums if self.shifted else sums.log()

    def positives(self, start: Statistics, boxes: Sequence[tuple[Tile, bool]]) -> Statistics:
        """Statistics over the positives in these boxes; `True`: a box serves its columns too."""
        statistics = start.copy()
        for box, twice in boxes:
            s = self.anchors[box[0]] @ self.rows[box[1]].T
            statistics.add_positives(s, self.layout.positives(box), box[0])
            if twice:
                statistics.add_positives(s.T, self.layout.positives(box[::-1]), box[1])
        return statistics

    def gradients(
        self,
        tiles: Sequence[tuple[Tile, list[Tile]]],
        statistics: Statistics,
        upstream: Tensor,
        weight: Tensor,
        grad_anchors: RowsBySlice | None,
        grad_rows: RowsBySlice | None,
    ) -> None:
        """Add `W z` of these tiles; `W_ij` is the weight of the pair for both its ends.

        `weight` is `Statistics.negative_weight`; the gradients are one and the same where the anchors are the rows, and
        None where they are not wanted.
        """
        shift = statistics.log_neg_or_0()
        for (a, r), boxes in tiles:
            s = self.anchors[a] @ self.rows[r].T
            insides = [within((a, r), box) for box in boxes]
            pulls = [
                self._box_weights(s[inside], box, statistics, upstream)
                for inside, box in zip(insides, boxes, strict=True)
            ]
            w = self._negative_weights(s, a, r, weight, shift)
            for inside, box, pull in zip(insides, boxes, pulls, strict=True):
                w[inside] = torch.where(self.layout.same(box), pull, w[inside])
            if grad_anchors is not None:
                grad_anchors[a].addmm_(w, self.rows[r])
            if grad_rows is not None and not (self.layout.symmetric and a == r):
                grad_rows[r].addmm_(w.T, self.anchors[a])

    def _negative_weights(self, s: Tensor, a: slice, r: slice, weight: Tensor, shift: Tensor) -> Tensor:
        """The weights of a tile's pairs, as if all were negatives; `s` is overwritten."""
        symmetric = self.layout.symmetric
        if not self.shifted:
            return s.exp_().mul_(weight[a, None] + weight[r] if symmetric else weight[a, None])
        w = (s - shift[a, None]).exp() * weight[a, None]
        return w + (s - shift[r]).exp() * weight[r] if symmetric else w

    def _box_weights(self, s: Tensor, box: Tile, statistics: Statistics, upstream: Tensor) -> Tensor:
        """The weights of a box's pairs, as if all had equal labels: their pull, or 0 where they are no positives."""
        a, r = box
        pull = upstream[a, None] * statistics.positive_gradient(s, a)
        weights = torch.where(self.layout.positives(box), pull, 0)
        if self.layout.symmetric:
            reverse = upstream[r, None] * statistics.positive_gradient(s.T, r)
            weights = weights + torch.where(self.layout.positives((r, a)), reverse, 0).T
        return weights
