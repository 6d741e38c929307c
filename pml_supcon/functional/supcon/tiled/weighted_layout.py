"""The tiles over pairs with weights: labels of a target, in the order of the batch."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from pml_supcon.functional.supcon import checks
from pml_supcon.functional.supcon.tiled.layout import Tile, edge_of, tiles_over
from pml_supcon.targets import Target


@dataclass(frozen=True)
class WeightedLayout:
    """The labels of anchors and rows, in the order in which they came; any pair can have a weight.

    ``own_rows`` are slices of anchors, each with the row of its first anchor; an anchor is not contrasted with its row.
    """

    anchor_labels: Tensor  # (A, ...), as the target prepared them
    row_labels: Tensor  # (M, ...)
    own_rows: tuple[tuple[slice, int], ...]
    target: Target
    symmetric: bool  # the anchors are the rows, in the same order

    @property
    def edge(self) -> int:
        """The largest number of anchors and of rows of a tile."""
        return edge_of(self.row_labels)

    def tiles(self, anchors: slice | None = None, rows: slice | None = None) -> Iterator[tuple[Tile, list[Tile]]]:
        """Yield the tiles that cover all pairs of some anchors and rows, each as its own box; see ``Layout.tiles``."""
        anchors = anchors or slice(0, len(self.anchor_labels))
        rows = rows or slice(0, len(self.row_labels))
        for tile in tiles_over(anchors, rows, self.edge, upper=self.symmetric and rows == anchors):
            yield tile, [tile]

    def weights(self, anchors: slice, rows: slice, like: Tensor) -> Tensor:
        """Return ``w_ij`` of a tile, ``(anchors, rows)``, in memory of its own; 0 for an anchor with its own row."""
        w = checks.block_weights(self.target, self.anchor_labels[anchors], self.row_labels[rows], like.dtype)
        return self.fill_own(w, anchors, rows, 0)

    def fill_own(self, x: Tensor, anchors: slice, rows: slice, value: float) -> Tensor:
        """Return a tile ``(anchors, rows)`` with a value for the pairs of an anchor with its own row, in place."""
        for part, first_row in self.own_rows:
            if part.start <= anchors.start < part.stop:  # a tile's anchors are in one slice
                diagonal = first_row + anchors.start - part.start - rows.start
                if -x.shape[0] < diagonal < x.shape[1]:
                    x.diagonal(diagonal).fill_(value)
        return x
