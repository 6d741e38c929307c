"""The tiles over rows sorted by label, the boxes of a tile that can hold positives, and their masks."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pml_supcon.functional.supcon.classes import Cap, class_sizes
from pml_supcon.functional.supcon.problem import Problem

TILE = 512  # edge of a tile on the CPU: 1 MB in float32, about the cache of a core
DEVICE_TILE = 4096  # edge on other devices, where each operation costs a launch
STRIP = 128  # most anchors of a box

Tile = tuple[slice, slice]  # of anchors and of rows


@dataclass(frozen=True)
class Layout:
    """The labels, identities and ranks of sorted anchors and rows."""

    anchor_labels: Tensor  # (A,), ascending
    row_labels: Tensor  # (M,), ascending
    anchor_ids: Tensor | None  # (A,); an anchor is not contrasted with the row of the same id; None: with all rows
    row_ids: Tensor | None  # (M,), or None
    cap: Cap | None  # ranks that cap the positives
    row_sizes: Tensor | None  # (M,), the number of rows of each row's class, if classes are balanced
    symmetric: bool  # the anchors are the rows, in the same order

    @staticmethod
    def of(problem: Problem) -> tuple["Layout", Tensor, Tensor]:
        """Return the layout of a problem with labels, and the orders that sort its anchors and its rows."""
        assert problem.anchor_labels is not None  # for the type checker: no pairs, so labels
        assert problem.row_labels is not None
        row_order = torch.argsort(problem.row_labels, stable=True)
        anchor_order = row_order if problem.symmetric else torch.argsort(problem.anchor_labels, stable=True)
        cap = problem.cap
        layout = Layout(
            anchor_labels=problem.anchor_labels[anchor_order],
            row_labels=problem.row_labels[row_order],
            anchor_ids=None if problem.first_anchor is None else anchor_order + problem.first_anchor,
            row_ids=None if problem.first_anchor is None else row_order,
            cap=cap and Cap(cap.anchor_rank[anchor_order], cap.anchor_limit[anchor_order], cap.row_rank[row_order]),
            row_sizes=class_sizes(problem.row_labels)[row_order] if problem.class_balanced else None,
            symmetric=problem.symmetric,
        )
        return layout, anchor_order, row_order

    @property
    def edge(self) -> int:
        """The largest number of anchors and of rows of a tile."""
        return edge_of(self.row_labels)

    def tiles(self, anchors: slice | None = None, rows: slice | None = None) -> Iterator[tuple[Tile, list[Tile]]]:
        """Yield the tiles that cover all pairs, each with its boxes, which hold all its pairs of equal labels.

        With symmetry the tiles are on and above the diagonal. Labels on a GPU are not read, because that would wait for
        the device: the whole tile is then its one box. ``anchors`` and ``rows`` limit the pairs; with symmetry they are
        equal or do not overlap.
        """
        anchors = anchors or slice(0, len(self.anchor_labels))
        rows = rows or slice(0, len(self.row_labels))
        known = on_host(self.row_labels)
        a, r = self._labels_on_host if known else ([], [])
        for tile in tiles_over(anchors, rows, self.edge, upper=self.symmetric and rows == anchors):
            yield tile, list(boxes(a, r, tile)) if known else [tile]

    @cached_property
    def _labels_on_host(self) -> tuple[list[int], list[int]]:
        anchor_labels = self.anchor_labels.tolist()
        return anchor_labels, anchor_labels if self.symmetric else self.row_labels.tolist()

    def same(self, box: Tile) -> Tensor:
        """Return the mask of a box's pairs of equal labels, bool ``(anchors, rows)``."""
        anchors, rows = box
        return self.anchor_labels[anchors, None] == self.row_labels[rows]

    def positives(self, box: Tile) -> Tensor:
        """Return the mask of a box's positives, bool ``(anchors, rows)``."""
        anchors, rows = box
        # P(i): same label, not the anchor itself, and within the cap
        positives = self.same(box)
        if self.anchor_ids is not None and self.row_ids is not None:
            positives &= self.anchor_ids[anchors, None] != self.row_ids[rows]
        if self.cap is not None:
            positives &= self.cap.keeps(anchors, rows)
        return positives

    def mirrored(self, box: Tile, positives: Tensor) -> Tensor:
        """Return the mask of a mirrored box, bool ``(rows, anchors)``, from the mask ``positives`` of the box.

        Only with symmetry. The mask is transposed unless a cap keeps other rows for one end of a pair than the other.
        """
        return positives.T if self.cap is None else self.positives(box[::-1])


def edge_of(labels: Tensor) -> int:
    """Return the largest number of anchors and of rows of a tile, from the labels of the rows."""
    return TILE if on_host(labels) else DEVICE_TILE


def tiles_over(anchors: slice, rows: slice, edge: int, *, upper: bool) -> Iterator[Tile]:
    """Yield the tiles of some anchors and rows; ``upper``: those on and above the diagonal."""
    for top in range(anchors.start, anchors.stop, edge):
        for left in range(top if upper else rows.start, rows.stop, edge):
            yield slice(top, min(top + edge, anchors.stop)), slice(left, min(left + edge, rows.stop))


def boxes(a: list[int], r: list[int], tile: Tile) -> Iterator[Tile]:
    """Yield strips of a tile's anchors, each with the rows that can share a label with one of them.

    ``a`` and ``r`` are the labels of anchors and rows, ascending. A strip ends where a class ends, if one ends in it.
    """
    # start at the first anchor whose label is not below all labels of the tile's rows
    bottom, left, right = tile[0].stop, tile[1].start, tile[1].stop
    top = bisect_left(a, r[left], tile[0].start, bottom)
    while top < bottom and a[top] <= r[right - 1]:
        # whole classes, or a part of one
        end = min(top + STRIP, bottom)
        if end < bottom and a[top] < a[end - 1] == a[end]:
            end = bisect_left(a, a[end], top, end)
        # the rows between the lowest and the highest label of the strip
        rows = slice(bisect_left(r, a[top], left, right), bisect_right(r, a[end - 1], left, right))
        if rows.start < rows.stop:
            yield slice(top, end), rows
        top = end


def on_host(labels: Tensor) -> bool:
    """Return True if labels can be read without waiting for a device."""
    return labels.device.type == "cpu"


def within(tile: Tile, box: Tile) -> Tile:
    """Return a box's slices relative to its tile."""
    (a, r), (box_a, box_r) = tile, box
    return slice(box_a.start - a.start, box_a.stop - a.start), slice(box_r.start - r.start, box_r.stop - r.start)
