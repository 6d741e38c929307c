"""The part of the positives of L_out for soft labels, without weights in the tiles.

``w_ij = <y_i, y_j>`` is bilinear: with ``S = sum_j y_j`` ``(C,)`` and ``M = sum_j y_j r_j^T`` ``(C, D)`` over the rows
``r_j``, of which ``r_o`` with the labels ``y_i`` is the anchor's own,

    W_i = sum_j w_ij = y_i . S - |y_i|^2,        sum_j w_ij s_ij = z_i . (y_i M - |y_i|^2 r_o)

The tiles then compute ``log D_i`` alone, for the denominator "all".
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from pml_supcon.functional.supcon.execution import map_in_threads
from pml_supcon.functional.supcon.tiled.statistics import AnchorSums, Formula
from pml_supcon.functional.supcon.tiled.weighted_layout import WeightedLayout
from pml_supcon.targets import SoftLabels

Result = TypeVar("Result")

CHUNK = 512  # rows that are converted to float64 at once

#: The smallest ``W_i`` over ``y_i . S``, by the dtype of the losses. Below it float64 loses digits to the own row's
#: ``|y_i|^2``, and the tiles compute the weights.
LEAST_SHARE = {torch.float32: 1e-7, torch.float64: 1e-2}
LEAST_TOTAL = 1e-8  # far above the sum of the weights that are so small that the tiles take them for 0


class Bilinear(NamedTuple):
    """The anchors and rows of this process, and the sums over the rows of all processes, in float64."""

    anchors: Tensor  # (A, D); the products of anchors and rows are the similarities
    rows: Tensor  # (M, D)
    anchor_labels: Tensor  # (A, C)
    row_labels: Tensor  # (M, C)
    own: slice | None  # the rows that are the anchors themselves
    total: Tensor  # (A,) W_i
    all_reduce: Callable[[Tensor], Tensor]  # the sum over all processes

    @classmethod
    def of(
        cls,
        layout: WeightedLayout,
        formula: Formula,
        anchors: Tensor,
        rows: Tensor,
        places: tuple[slice, slice] = (slice(None), slice(None)),
        all_reduce: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> Self | None:
        """Return the part of the anchors and rows at two slices of a layout, or None where tiles have to compute it.

        The labels of the whole layout decide, so that all processes return the same.
        """
        if (
            type(layout.target) is not SoftLabels
            or (formula.summation, formula.denominator, formula.counts) != ("out", "all", False)
            or anchors.device.type != "cpu"  # the host reads a value, and waits for no device
        ):
            return None
        total = totals(layout, anchors.dtype)
        if total is None:
            return None
        (a, r), own = places, None
        for part, first_row in layout.own_rows:
            if len(anchors) and part.start == (a.start or 0):  # the slice of anchors, whose rows are here too
                own = slice(first_row - (r.start or 0), first_row - (r.start or 0) + len(anchors))
        return cls(anchors, rows, layout.anchor_labels[a], layout.row_labels[r], own, total[a], all_reduce)

    def add_to(self, statistics: AnchorSums, places: slice = slice(None)) -> None:
        """Add ``W_i`` and ``sum_j w_ij s_ij`` of these anchors to the sums at their places."""
        total, linear = statistics.sums[0][places], statistics.sums[2][places]
        total += self.total
        M = self.all_reduce(class_sums(self.row_labels, self.rows))

        def add(parts: Sequence[slice]) -> None:
            for part in parts:
                z, y = self.anchors[part].double(), self.anchor_labels[part].double()
                linear[part] -= torch.linalg.vecdot(z, self._pulls(part, y, M))

        in_chunks(add, len(self.anchors))

    def _pulls(self, part: slice, y: Tensor, M: Tensor) -> Tensor:
        """Return ``sum_j w_ij r_j`` ``(len(part), D)``."""
        pulls = y @ M
        return pulls if self.own is None else pulls.sub_(self._own_weights(y) * self.rows[self.own][part])

    def _own_weights(self, y: Tensor) -> Tensor:
        return y.square().sum(dim=1, keepdim=True)

    def subtract_gradients(self, upstream: Tensor, of_anchors: Tensor | None, of_rows: Tensor | None) -> None:
        """Subtract ``d / dz`` of ``sum_i v_i sum_j w_ij s_ij`` with ``v_i = u_i / W_i``, from buffers if requested.

        With ``M_v = sum_i v_i y_i z_i^T``, ``(C, D)``: ``v_i (y_i M - |y_i|^2 r_o)`` for an anchor, ``y_j M_v`` for a
        row, less ``v_i |y_i|^2 z_i`` for an anchor's own row.
        """
        v = torch.where(self.total > 0, upstream / self.total, 0)[:, None]
        if of_anchors is not None:
            M = self.all_reduce(class_sums(self.row_labels, self.rows))

            def subtract_from_anchors(parts: Sequence[slice]) -> None:
                for part in parts:
                    of_anchors[part] -= v[part] * self._pulls(part, self.anchor_labels[part].double(), M)

            in_chunks(subtract_from_anchors, len(self.anchors))
        if of_rows is not None:
            M_v = self.all_reduce(class_sums(self.anchor_labels, self.anchors, v))

            def subtract_from_rows(parts: Sequence[slice]) -> None:
                for part in parts:
                    of_rows[part] -= self._pulls_of_rows(part, self.row_labels[part].double(), M_v, v)

            in_chunks(subtract_from_rows, len(self.rows))

    def _pulls_of_rows(self, part: slice, y: Tensor, M_v: Tensor, v: Tensor) -> Tensor:
        """Return ``sum_i v_i w_ij z_i`` ``(len(part), D)``; large numbers cancel before float32 rounds them."""
        pulls = y @ M_v
        if self.own is not None:
            first, last = max(part.start, self.own.start), min(part.stop, self.own.stop)
            if first < last:
                rows = slice(first - part.start, last - part.start)
                anchors = slice(first - self.own.start, last - self.own.start)
                pulls[rows] -= v[anchors] * self._own_weights(y[rows]) * self.anchors[anchors]
        return pulls


def totals(layout: WeightedLayout, dtype: torch.dtype) -> Tensor | None:
    """Return ``W_i`` of all anchors, ``(A,)`` float64, or None if float64 cannot give one of them accurately."""
    y, has_own = layout.anchor_labels, bool(layout.own_rows)

    # S, and the number of rows with a share of each class, which is exact: (2, C)
    def sum_rows(parts: Sequence[slice]) -> Tensor:
        sums = torch.zeros(2, y.shape[1], dtype=torch.float64)
        for part in parts:
            rows = layout.row_labels[part].double()
            sums += torch.stack([rows.sum(dim=0), (rows > 0).sum(dim=0)])
        return sums

    S, number = reduce(Tensor.add_, in_chunks(sum_rows, len(layout.row_labels)))
    total = y.new_empty(len(y), dtype=torch.float64)

    def sum_weights(parts: Sequence[slice]) -> bool:
        accurate = True
        for part in parts:
            rows = y[part].double()
            total[part] = (rows * (S - rows if has_own else S)).sum(dim=1)
            sharers = (rows > 0).double() @ (number - 1 if has_own else number)
            # an anchor whose classes no other row has is invalid, exactly
            total[part][sharers == 0] = 0
            least = (rows @ S).mul_(LEAST_SHARE[dtype]).clamp_(min=LEAST_TOTAL)
            accurate = accurate and not bool(((total[part] < least) & (sharers > 0)).any())
        return accurate

    return total if all(in_chunks(sum_weights, len(y))) else None


def class_sums(labels: Tensor, rows: Tensor, factors: Tensor | None = None) -> Tensor:
    """Return ``sum_j f_j y_j r_j^T``, ``(C, D)`` float64."""

    def add(parts: Sequence[slice]) -> Tensor:
        sums = rows.new_zeros(labels.shape[1], rows.shape[1], dtype=torch.float64)
        for part in parts:
            r = rows[part].double()
            sums.addmm_(labels[part].double().T, r if factors is None else r * factors[part])
        return sums

    return reduce(Tensor.add_, in_chunks(add, len(rows)))


def in_chunks(work: Callable[[Sequence[slice]], Result], number: int) -> list[Result]:
    """Return the results of ``work`` for slices of a number of rows, divided over threads in a fixed order."""
    parts = [slice(start, min(start + CHUNK, number)) for start in range(0, number, CHUNK)]
    return map_in_threads(work, parts, torch.device("cpu"))
