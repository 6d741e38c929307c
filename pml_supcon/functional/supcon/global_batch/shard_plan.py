"""The assignment of a batch's rows and tiles to processes."""

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from pml_supcon.functional.supcon.classes import Cap, class_sizes, rank_cap
from pml_supcon.functional.supcon.execution import needs_shift
from pml_supcon.functional.supcon.problem import Problem
from pml_supcon.functional.supcon.tiled.layout import Layout, Tile
from pml_supcon.functional.supcon.tiled.statistics import AnchorSums, Formula, Statistics
from pml_supcon.functional.supcon.tiled.weighted_layout import WeightedLayout
from pml_supcon.functional.supcon.tiled.weighted_statistics import WeightedStatistics

Tiles = list[tuple[Tile, list[Tile]]]


@dataclass(frozen=True)
class ShardPlan:
    """The assignment of rows and tiles to processes; each process computes the same plan.

    Places in the layout go process by process, and by label within each; with the weights of a target in the order of
    the rows.

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

    layout: Layout | WeightedLayout
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

        ``problem`` holds the rows of this process only, ``labels`` ``(B, ...)`` those of all processes by rank, and
        ``samples`` the number of samples of each process, with ``views`` rows each.
        """
        rank = dist.get_rank(group)
        anchor_views = views if problem.symmetric else 1
        # 1. for each process: the order of its view-major rows, by label unless any pair can have a weight, and their
        # positions v * B + b in the batch
        order = order_of if problem.target is None else given_order
        rows = [order(labels, block, views) for block in blocks(samples)]
        anchors = [order(labels, block, anchor_views) for block in blocks(samples)]
        row_places, anchor_places = (torch.cat([places for _, places in side]) for side in (rows, anchors))
        anchor_blocks, row_blocks = (blocks([number * v for number in samples]) for v in (anchor_views, views))
        if problem.target is not None:
            own_rows = tuple((anchors, rows.start) for anchors, rows in zip(anchor_blocks, row_blocks, strict=True))
            layout: Layout | WeightedLayout = weighted_layout(problem, labels, anchor_places, row_places, own_rows)
        else:
            layout = sorted_layout(problem, labels, anchor_places, row_places, views)
        return ShardPlan(
            layout=layout,
            anchor_blocks=anchor_blocks,
            row_blocks=row_blocks,
            anchor_order=anchors[rank][0],
            row_order=rows[rank][0],
            anchor_places=anchor_places,
            rank=rank,
            group=group,
            formula=Formula.of(problem),
            shifted=needs_shift(problem),
        )

    @property
    def statistics(self) -> type[AnchorSums]:
        """The class of the sums per anchor."""
        return Statistics if isinstance(self.layout, Layout) else WeightedStatistics

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


def sorted_layout(problem: Problem, labels: Tensor, anchor_places: Tensor, row_places: Tensor, views: int) -> Layout:
    """Return the layout of the whole batch for class labels ``(B,)``, from the positions of anchors and rows in it."""
    row_labels, cap, positives_cap = labels.repeat(views), None, problem.options.positives_cap
    # the anchors are the rows, or their first view: the first positions of the batch
    if positives_cap is not None:  # ranks of the whole batch, then in layout order
        cap = rank_cap(row_labels, views, positives_cap // views, len(anchor_places))
        cap = Cap(cap.anchor_rank[anchor_places], cap.anchor_limit[anchor_places], cap.row_rank[row_places])
    return Layout(
        anchor_labels=row_labels[anchor_places],
        row_labels=row_labels[row_places],
        anchor_ids=anchor_places,
        row_ids=row_places,
        cap=cap,
        row_sizes=class_sizes(row_labels)[row_places] if problem.class_balanced else None,
        symmetric=problem.symmetric,
    )


def weighted_layout(
    problem: Problem,
    labels: Tensor,
    anchor_places: Tensor,
    row_places: Tensor,
    own_rows: tuple[tuple[slice, int], ...],
) -> WeightedLayout:
    """Return the layout of the whole batch for labels ``(B, ...)`` of a target."""
    assert problem.target is not None  # for the type checker
    # (B, ...), then of rows: the rows of a sample have its labels
    labels = problem.target.prepare(labels, problem.dtype)
    row_labels = labels[row_places % max(1, len(labels))]
    anchor_labels = row_labels if problem.symmetric else labels[anchor_places]
    return WeightedLayout(anchor_labels, row_labels, own_rows, problem.target, problem.symmetric)


def order_of(labels: Tensor, block: slice, views: int) -> tuple[Tensor, Tensor]:
    """Return the order that sorts a process's view-major rows by label, and their positions in the whole batch."""
    # (views * b,) positions of the process's rows; the order by label
    places = places_of(block, views, len(labels), labels.device)
    order = torch.argsort(labels[block].repeat(views), stable=True)
    return order, places[order]


def given_order(labels: Tensor, block: slice, views: int) -> tuple[Tensor, Tensor]:
    """Return the order of a process's view-major rows as they are, and their positions in the whole batch."""
    places = places_of(block, views, len(labels), labels.device)
    return torch.arange(len(places), device=labels.device), places


def places_of(block: slice, views: int, number: int, device: torch.device) -> Tensor:
    """Return the positions ``v * B + b``, in a batch of B samples, of a process's view-major rows; ``(views * b,)``."""
    samples = torch.arange(block.start, block.stop, device=device)
    return (torch.arange(views, device=device)[:, None] * number + samples).flatten()
