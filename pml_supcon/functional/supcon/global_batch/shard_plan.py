"""The assignment of a batch's rows and tiles to processes."""

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from pml_supcon.functional.supcon.execution import needs_shift
from pml_supcon.functional.supcon.problem import Cap, Problem, class_sizes, rank_cap
from pml_supcon.functional.supcon.tiled.layout import Layout, Tile
from pml_supcon.functional.supcon.tiled.statistics import Formula

Tiles = list[tuple[Tile, list[Tile]]]


@dataclass(frozen=True)
class ShardPlan:
    """The assignment of rows and tiles to processes; each process computes the same plan.

    Places in the layout go process by process, and by label within each.

    Attributes:
        layout: of the whole batch.
        anchor_blocks: the places of each process's anchors.
        row_blocks: the places of each process's rows.
        anchor_order: sorts this process's anchors.
        row_order: sorts this process's rows.
        anchor_places: ``(A,)``: the position of the anchor at each place in the view-major order of the batch.
        rank: of this process.
        group: the processes.
        formula: like ``shifted``, from the options of the problem.
    """

    layout: Layout
    anchor_blocks: list[slice]
    row_blocks: list[slice]
    anchor_order: Tensor
    row_order: Tensor
    anchor_places: Tensor
    rank: int
    group: ProcessGroup
    formula: Formula
    shifted: bool

    @staticmethod
    def of(problem: Problem, labels: Tensor, samples: list[int], views: int, group: ProcessGroup) -> "ShardPlan":
        """Return the plan of a batch.

        ``problem`` holds the rows of this process only, ``labels`` ``(B,)`` the labels of all processes by rank, and
        ``samples`` the number of samples of each process, with ``views`` rows each.
        """
        rank = dist.get_rank(group)
        anchor_views = views if problem.symmetric else 1
        # 1. for each process: the order that sorts its view-major rows by label, and their positions v * B + b in
        # the batch
        rows = [order_of(labels, block, views) for block in blocks(samples)]
        anchors = [order_of(labels, block, anchor_views) for block in blocks(samples)]
        row_places, anchor_places = (torch.cat([places for _, places in side]) for side in (rows, anchors))
        # 2. ranks of the whole batch, then in layout order
        cap, positives_cap = None, problem.options.positives_cap
        if positives_cap is not None:
            cap = rank_cap(labels.repeat(views), views, positives_cap // views, len(labels) * anchor_views)
        layout = Layout(
            anchor_labels=labels.repeat(anchor_views)[anchor_places],
            row_labels=labels.repeat(views)[row_places],
            anchor_ids=anchor_places,
            row_ids=row_places,
            cap=cap and Cap(cap.anchor_rank[anchor_places], cap.anchor_limit[anchor_places], cap.row_rank[row_places]),
            row_sizes=class_sizes(labels.repeat(views))[row_places] if problem.class_balanced else None,
            symmetric=problem.symmetric,
        )
        return ShardPlan(
            layout=layout,
            anchor_blocks=blocks([number * anchor_views for number in samples]),
            row_blocks=blocks([number * views for number in samples]),
            anchor_order=anchors[rank][0],
            row_order=rows[rank][0],
            anchor_places=anchor_places,
            rank=rank,
            group=group,
            formula=Formula.of(problem),
            shifted=needs_shift(problem),
        )

    @property
    def peers(self) -> list[int]:
        """The processes whose rows this one receives, itself first; with symmetry half of them, the others get ours."""
        number = len(self.row_blocks)
        meets = number // 2 + 1 if self.layout.symmetric else number
        return [(self.rank + step) % number for step in range(meets)]

    def tiles(self, peer: int) -> Tiles:
        """Return the tiles of this process's anchors and a peer's rows that this process computes."""
        mine, theirs = self.anchor_blocks[self.rank], self.row_blocks[peer]
        tiles = list(self.layout.tiles(mine, theirs))
        # with an even number of processes, r and r + W/2 receive each other's rows: split their tiles like a chessboard
        meet_each_other = peer != self.rank and (peer - self.rank) * 2 % len(self.row_blocks) == 0
        if not self.layout.symmetric or not meet_each_other:
            return tiles
        return [
            (tile, boxes)
            for tile, boxes in tiles
            if (tile[0].start - mine.start + tile[1].start - theirs.start) // self.layout.edge % 2 == (self.rank < peer)
        ]


def blocks(numbers: list[int]) -> list[slice]:
    """Return consecutive slices of these lengths."""
    return [slice(stop - number, stop) for number, stop in zip(numbers, accumulate(numbers), strict=True)]


def order_of(labels: Tensor, block: slice, views: int) -> tuple[Tensor, Tensor]:
    """Return the order that sorts a process's view-major rows by label, and their positions in the whole batch."""
    # (views * b,) positions of the process's rows; the order by label
    places = places_of(block, views, len(labels), labels.device)
    order = torch.argsort(labels[block].repeat(views), stable=True)
    return order, places[order]


def places_of(block: slice, views: int, number: int, device: torch.device) -> Tensor:
    """Return the positions ``v * B + b``, in a batch of B samples, of a process's view-major rows; ``(views * b,)``."""
    samples = torch.arange(block.start, block.stop, device=device)
    return (torch.arange(views, device=device)[:, None] * number + samples).flatten()
