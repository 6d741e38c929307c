"""The passes over tiles of pairs with weights, from the labels of a target.

With ``w_ij`` the weights, ``D_i`` the sum of ``exp(s_ij)`` over the pairs in the denominator, and ``n_i`` the divisor,

    out:  d l_i / d s_ij = k_i exp(s_ij) / D_i - w_ij / n_i
    in:   d l_i / d s_ij = exp(s_ij) / D_i - w_ij exp(s_ij) / sum_p w_ip exp(s_ip)

with the first term only for pairs in the denominator, and ``k_i = sum_p w_ip / n_i``. Weights are computed in each
tile, forward and backward: none outlives its tile.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pml_supcon.functional.supcon.tiled.layout import Tile
from pml_supcon.functional.supcon.tiled.passes import RowsBySlice, exponents, matrix_in, tile_buffers
from pml_supcon.functional.supcon.tiled.weighted_layout import WeightedLayout
from pml_supcon.functional.supcon.tiled.weighted_statistics import WeightedStatistics


class WeightedPasses(NamedTuple):
    """The inputs of the passes; see ``TilePasses``, whose methods these are."""

    anchors: RowsBySlice
    rows: RowsBySlice
    layout: WeightedLayout
    dtype: torch.dtype
    shifted: bool  # compute with logarithms, because `exp(s)` could overflow
    denominator: str
    weighted: bool  # False: only sums over the denominator "all", and their gradient, without a shift

    @property
    def in_logarithms(self) -> bool:
        """True if ``exp(s)`` could overflow, and for "one_positive", whose sums are functions of each pair."""
        return self.shifted or self.denominator == "one_positive"

    def log_negatives(self, tiles: Sequence[tuple[Tile, list[Tile]]]) -> Tensor:
        """Return ``log sum_{n in N(i)} exp(s_in)`` over these tiles, ``(A,)``, for "one_positive".

        It is minus infinity for the other denominators, whose sums ``positives`` computes.
        """
        labels = self.layout.anchor_labels
        sums = labels.new_full((len(labels),), -torch.inf, dtype=self.dtype)
        if self.denominator == "one_positive":
            for (a, r), _ in tiles:
                for part, s, w in self._sides(a, r, mirror=a != r):
                    log_sum = s.masked_fill(w > 0, -torch.inf).logsumexp(dim=1)
                    sums[part] = torch.logaddexp(sums[part], log_sum)
        return sums

    def positives(self, start: WeightedStatistics, boxes: Sequence[tuple[Tile, bool]]) -> WeightedStatistics:
        """Return ``start`` plus the sums over the pairs of these tiles; ``True``: a tile serves its columns too."""
        statistics = start.copy()
        if not self.in_logarithms:
            self._add_tiles(statistics, boxes)
            return statistics
        for (a, r), twice in boxes:
            for part, s, w in self._sides(a, r, mirror=twice):
                statistics.add_pairs(s, w, part)
        return statistics

    def _add_tiles(self, statistics: WeightedStatistics, boxes: Sequence[tuple[Tile, bool]]) -> None:
        """Add the sums over the pairs of these tiles, without logarithms."""
        layout, out = self.layout, statistics.summation == "out"
        # (3, A): the sums of w, of w s / ln 2 (out) or w exp(s) (in), and of exp(s) over the denominator
        sums = statistics.table.new_zeros(3, statistics.table.shape[1])
        buffers = tile_buffers(layout, self.dtype, 3)
        for (a, r), twice in boxes:
            # x = s / ln 2 of a tile, (len(a), len(r)), and e = exp(s) = 2^x, 0 for an anchor with its own row
            x = exponents(self.anchors[a], self.rows[r], buffers[0])
            e = layout.fill_own(torch.exp2(x, out=matrix_in(buffers[1], *x.shape)), a, r, 0)
            w = product = pushes = e
            # sum over the columns for the anchors; off the diagonal of a symmetric problem also over the rows of the
            # tile, for the anchors of its columns
            for part, dim in ((a, 1), (r, 0))[: 1 + twice]:
                if not self.weighted:
                    sums[2][part] += e.sum(dim=dim)
                    continue
                if dim == 1 or not layout.target.symmetric:
                    w = layout.weights(a, r, x) if dim == 1 else layout.weights(r, a, x).T
                    product = torch.mul(w, x if out else e, out=matrix_in(buffers[2], *x.shape))
                    pushes = e if self.denominator == "all" else e.masked_fill(w > 0, 0)
                for total, terms in zip(sums, (w, product, pushes), strict=True):
                    total[part] += terms.sum(dim=dim)
                if statistics.formula.counts:
                    statistics.number[part] += (w > 0).sum(dim=dim)
        total, product, pushes = sums
        statistics.total += total
        if out:
            statistics.linear -= product * math.log(2)
        else:
            statistics.log_pos.copy_(torch.logaddexp(statistics.log_pos, product.log()))
        statistics.log_neg.copy_(torch.logaddexp(statistics.log_neg, pushes.log()))

    def gradients(
        self,
        tiles: Sequence[tuple[Tile, list[Tile]]],
        statistics: WeightedStatistics,
        upstream: Tensor,
        grad_anchors: RowsBySlice | None,
        grad_rows: RowsBySlice | None,
    ) -> None:
        """Add ``G z`` of these tiles, with ``G_ij = u_i d l_i / d s_ij``, with symmetry ``+ u_j d l_j / d s_ji``.

        See ``TilePasses.gradients``.
        """
        f, g = statistics.factors(upstream)
        buffers = [] if self.in_logarithms else tile_buffers(self.layout, self.dtype, 3)
        for (a, r), _ in tiles:
            # 1. G of the tile, (len(a), len(r))
            if self.in_logarithms:
                sides = [
                    upstream[part, None] * statistics.pair_gradient(s, w, part)
                    for part, s, w in self._sides(a, r, mirror=True)
                ]
                tile = sides[0] if len(sides) == 1 else sides[0].add_(sides[1].T)
            else:
                tile = self._tile_gradient(a, r, f, g, buffers, out=statistics.summation == "out")
            # 2. dL/dz: G z_rows for the anchors, G^T z_anchors for the rows; on the diagonal the first product is both
            if grad_anchors is not None:
                grad_anchors[a].addmm_(tile, self.rows[r])
            if grad_rows is not None and not (self.layout.symmetric and a == r):
                grad_rows[r].addmm_(tile.T, self.anchors[a])

    def _tile_gradient(self, a: slice, r: slice, f: Tensor, g: Tensor, buffers: list[Tensor], *, out: bool) -> Tensor:
        """Return ``G`` of a tile, in a buffer, from the factors of ``WeightedStatistics.factors``."""
        layout, both = self.layout, self.layout.symmetric
        # e = exp(s), 0 for an anchor with its own row, and the weights
        e = exponents(self.anchors[a], self.rows[r], buffers[0]).exp2_()
        layout.fill_own(e, a, r, 0)
        shape = e.shape
        if not self.weighted:
            push = matrix_in(buffers[1], *shape)
            return torch.add(f[a, None], f[r], out=push).mul_(e) if both else torch.mul(e, f[a, None], out=push)
        w = layout.weights(a, r, e)
        if both and layout.target.symmetric:
            # F_ij = f_i + f_j, and the pull w_ij (g_i + g_j)
            push = torch.add(f[a, None], f[r], out=matrix_in(buffers[1], *shape))
            if self.denominator != "all":
                push.masked_fill_(w > 0, 0)
            pull = torch.add(g[a, None], g[r], out=matrix_in(buffers[2], *shape)).mul_(w)
        else:
            # the anchors in the rows of the tile, then those in its columns: F_ij = f_i, w_ij g_i
            sides = [(f[a, None], g[a, None], w)]
            if both:
                sides.append((f[r], g[r], layout.weights(r, a, e).T))
            push, pull = (matrix_in(buffer, *shape).zero_() for buffer in buffers[1:])
            for of_push, of_pull, weights in sides:
                push += of_push if self.denominator == "all" else of_push.expand(shape).masked_fill(weights > 0, 0)
                pull.addcmul_(weights, of_pull)
        # out: F e - pull;  in: (F - pull) e
        return push.mul_(e).sub_(pull) if out else push.sub_(pull).mul_(e)

    def _sides(self, a: slice, r: slice, *, mirror: bool) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield the anchors, similarities and weights of a tile; with ``mirror`` and symmetry also of its mirror image.

        The similarity of an anchor with its own row is minus infinity.
        """
        s = self.layout.fill_own(self.anchors[a] @ self.rows[r].T, a, r, -torch.inf)
        w = self.layout.weights(a, r, s)
        yield a, s, w
        if mirror and self.layout.symmetric:
            yield r, s.T, w.T if self.layout.target.symmetric else self.layout.weights(r, a, s)
