"""The three passes over the tiles: negatives, positives, gradients."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pml_supcon.functional.supcon.tiled.layout import Layout, Tile, within
from pml_supcon.functional.supcon.tiled.statistics import Statistics
from pml_supcon.functional.supcon.tiled.weighted_layout import WeightedLayout


class RowsBySlice(Protocol):
    """Rows indexed by their place in the layout: a tensor, or a view of one block of the layout."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Return a view ``(len(rows), D)`` to read from or add to."""


class TilePasses(NamedTuple):
    """The inputs of the passes; each pass takes a list of tiles, so that threads and processes can divide them."""

    anchors: RowsBySlice  # sorted
    rows: RowsBySlice  # sorted; the products of anchors and rows are the similarities
    layout: Layout  # labels, identities and caps, which decide which pairs are positives
    dtype: torch.dtype  # of the rows
    shifted: bool  # compute with logarithms, because `exp(s)` could overflow

    def log_negatives(self, tiles: Sequence[tuple[Tile, list[Tile]]]) -> Tensor:
        """Return ``log sum_{n in N(i)} exp(s_in)`` over these tiles, ``(A,)``; minus infinity without negatives.

        If classes are balanced, each exponential is divided by the size of its class.
        """
        nothing = -torch.inf if self.shifted else 0
        sums = torch.full_like(self.layout.anchor_labels, nothing, dtype=self.dtype)
        buffers = tile_buffers(self.layout, self.dtype, 2)
        shares = self._class_shares()
        for (a, r), boxes in tiles:
            # x = s / ln 2 of a tile, (len(a), len(r)); exp(s) = 2^x in place unless logarithms are needed
            x = exponents(self.anchors[a], self.rows[r], buffers[0])
            if not self.shifted:
                x.exp2_()
            # take out pairs of equal labels: outside the boxes there are none
            for box in boxes:
                x[within((a, r), box)].masked_fill_(self.layout.same(box), nothing)
            # sum over the columns for the anchors; off the diagonal of a symmetric problem s_ij = s_ji, so also over
            # the rows of the tile for the anchors of its columns
            for part, dim in ((a, 1), (r, 0))[: 1 + (self.layout.symmetric and a != r)]:
                if self.shifted:
                    # with balanced classes 2^x times their shares, which are of the rows that the sum is over
                    terms = x if shares is None else x + (shares[r] if dim else shares[a, None]).log2()
                    sums[part] = torch.logaddexp2(
                        sums[part], log2_sum_exp2(terms, dim, matrix_in(buffers[1], *x.shape))
                    )
                elif shares is None:
                    sums[part] += x.sum(dim=dim)
                else:
                    sums[part] += x @ shares[r] if dim else shares[a] @ x
        return sums * math.log(2) if self.shifted else sums.log()

    def positives(self, start: Statistics, boxes: Sequence[tuple[Tile, bool]]) -> Statistics:
        """Return ``start`` plus the sums over the positives in these boxes; ``True``: a box serves its columns too."""
        statistics = start.copy()
        for box, twice in boxes:
            # similarities of a box and the mask of its positives, both (anchors, rows)
            s = self.anchors[box[0]] @ self.rows[box[1]].T
            positives = self.layout.positives(box)
            statistics.add_positives(s, positives, box[0])
            # s_ij = s_ji: the transposed box holds the positives of the anchors in its columns
            if twice:
                statistics.add_positives(s.T, self.layout.mirrored(box, positives), box[1])
        return statistics

    def gradients(
        self,
        tiles: Sequence[tuple[Tile, list[Tile]]],
        statistics: Statistics,
        upstream: Tensor,
        grad_anchors: RowsBySlice | None,
        grad_rows: RowsBySlice | None,
    ) -> None:
        """Add ``W z`` of these tiles, with ``W_ij = u_i d l_i / d s_ij``, with symmetry ``+ u_j d l_j / d s_ji``.

        ``upstream`` is ``u`` ``(A,)``. The buffers ``grad_anchors`` ``(A, D)`` and ``grad_rows`` ``(M, D)`` are None if
        not requested, and the same buffer if the anchors are the rows.
        """
        # (A,): the factor of exp(s_ij) in W_ij of a negative
        weight = statistics.negative_weight(upstream, shifted=self.shifted)
        shift = statistics.log_neg_or_0() / math.log(2)
        # u_i d l_i / d s_ip of positives as slope_i exp(s_ip) + offset_i, if there is no shift and it has this form
        line = None if self.shifted else statistics.positive_line(upstream)

        def positive_weights(x: Tensor, a: slice) -> Tensor:
            if line is None:  # x is s
                return upstream[a, None] * statistics.positive_gradient(x, a)
            slope, offset = line  # x is exp(s)
            return torch.addcmul(offset[a, None], x, slope[a, None])

        buffers = tile_buffers(self.layout, self.dtype, 2)
        shares = self._class_shares()
        for (a, r), boxes in tiles:
            # 1. x = s / ln 2 of the tile again, (len(a), len(r)); exp(s) = 2^x in place unless logarithms are needed
            x = exponents(self.anchors[a], self.rows[r], buffers[0])
            if not self.shifted:
                x.exp2_()
            # 2. weights of all pairs as if they were negatives, then replace the weights of pairs with equal labels
            w = self._negative_weights(x, a, r, weight, shift, shares, buffers[1])
            for box in boxes:
                inside = within((a, r), box)
                s_or_exp = self.anchors[box[0]] @ self.rows[box[1]].T if line is None else x[inside]
                pulls = self._box_weights(s_or_exp, box, positive_weights)
                w[inside] = torch.where(self.layout.same(box), pulls, w[inside])
            # 3. dL/dz: W z_rows for the anchors, W^T z_anchors for the rows; on the diagonal the first product is both
            if grad_anchors is not None:
                grad_anchors[a].addmm_(w, self.rows[r])
            if grad_rows is not None and not (self.layout.symmetric and a == r):
                grad_rows[r].addmm_(w.T, self.anchors[a])

    def _class_shares(self) -> Tensor | None:
        """Return 1 over the size of each row's class, ``(M,)``, if classes are balanced."""
        sizes = self.layout.row_sizes
        return None if sizes is None else sizes.to(self.dtype).reciprocal_()

    def _negative_weights(
        self, x: Tensor, a: slice, r: slice, weight: Tensor, shift: Tensor, shares: Tensor | None, buffer: Tensor
    ) -> Tensor:
        """Return ``W`` of a tile as if all pairs were negatives, in a buffer.

        ``d l_i / d s_in = k_i exp(s_in - log_neg_i)``, with ``k_i`` from ``Statistics.negative_share``. ``x`` is
        ``exp(s)``; if shifted it is ``s / ln 2`` and is overwritten, and ``shift`` is ``log_neg / ln 2``. ``shares`` is
        ``_class_shares``, the factor of each exponential if classes are balanced.
        """
        symmetric, w = self.layout.symmetric, matrix_in(buffer, *x.shape)
        # without a shift both ends share the exponential: exp(s_ij) (weight_i + weight_j)
        if not self.shifted:
            if shares is not None:  # exp(s_ij) (weight_i share_j + weight_j share_i)
                torch.outer(weight[a], shares[r], out=w)
                return (w.addr_(shares[a], weight[r]) if symmetric else w).mul_(x)
            if not symmetric:
                return torch.mul(x, weight[a, None], out=w)
            return torch.add(weight[a, None], weight[r], out=w).mul_(x)
        # with a shift each end has its own: exp(s_ij - log_neg_i) weight_i + exp(s_ij - log_neg_j) weight_j
        torch.sub(x, shift[a, None], out=w).exp2_().mul_(weight[a, None])
        if shares is not None:
            w.mul_(shares[r])
        if not symmetric:
            return w
        x.sub_(shift[r]).exp2_()
        return w.addcmul_(x if shares is None else x.mul_(shares[a, None]), weight[r])

    def _box_weights(self, x: Tensor, box: Tile, positive_weights: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """Return ``W`` of a box as if all pairs had equal labels: ``u d l / d s`` of positives, 0 elsewhere."""
        a, r = box
        # of the anchors in the rows of the box
        positives = self.layout.positives(box)
        weights = torch.where(positives, positive_weights(x, a), 0)
        # with symmetry also of the anchors in its columns; on the diagonal they are the same
        if self.layout.symmetric and a == r:
            weights = weights + weights.T
        elif self.layout.symmetric:
            weights = weights + torch.where(self.layout.mirrored(box, positives), positive_weights(x.T, r), 0).T
        return weights


def log2_sum_exp2(x: Tensor, dim: int, buffer: Tensor) -> Tensor:
    """Return ``log2 sum 2^x`` over a dimension of a matrix; a buffer of its shape is overwritten."""
    # shift by the largest x of each sum, which is infinite for an empty one
    largest = x.amax(dim=dim, keepdim=True)
    shift = largest.masked_fill(largest.isinf(), 0)
    return torch.sub(x, shift, out=buffer).exp2_().sum(dim=dim).log2_().add_(shift.squeeze(dim))


def tile_buffers(layout: Layout | WeightedLayout, dtype: torch.dtype, number: int) -> list[Tensor]:
    """Return memory for some tiles, used for all tiles of a pass."""
    a, r = layout.anchor_labels, layout.row_labels
    size = min(len(a), layout.edge) * min(len(r), layout.edge)
    return [a.new_empty(size, dtype=dtype) for _ in range(number)]


def exponents(anchors: Tensor, rows: Tensor, buffer: Tensor) -> Tensor:
    """Return ``x = s / ln 2`` of a tile, ``(anchors, rows)``, in a buffer; ``2^x = exp(s)`` is faster than exp."""
    x = matrix_in(buffer, len(anchors), len(rows))
    return torch.addmm(x, anchors, rows.T, beta=0, alpha=1 / math.log(2), out=x)


def matrix_in(buffer: Tensor, height: int, width: int) -> Tensor:
    """Return a matrix ``(height, width)`` at the start of a buffer."""
    return buffer[: height * width].view(height, width)


def upstream_scale(upstream: Tensor) -> Tensor:
    """Return the largest magnitude of an upstream gradient ``(A,)``, or 1 if it is 0 or not finite."""
    if len(upstream) == 0:
        return upstream.new_ones(())
    largest = upstream.abs().amax()
    return torch.where(largest.isfinite() & (largest > 0), largest, 1)
