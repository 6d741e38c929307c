"""The tiled loss of a batch that lies on several processes, each holding some of its rows.

Every process meets the rows of the others one block at a time, while the next block is on its way: memory is that of
its own rows. A pair of rows is computed once, on one of the two processes that hold them, and serves both: with `W`
processes each does `1/W` of the products of one process alone. Labels and sums per anchor are known to all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from pml_supcon.functional import collectives
from pml_supcon.functional.supcon import layout as layouts
from pml_supcon.functional.supcon.layout import Layout, Tile
from pml_supcon.functional.supcon.passes import Passes
from pml_supcon.functional.supcon.problem import AnchorLosses, Cap, Problem, rank_cap
from pml_supcon.functional.supcon.statistics import Statistics
from pml_supcon.functional.supcon.tiled import SAFE_EXPONENT
from pml_supcon.functional.supcon.workers import shared_out

Tiles = list[tuple[Tile, list[Tile]]]


def anchor_losses(
    problem: Problem, labels: Tensor, samples: list[int], views: int, keep: int | None, group: ProcessGroup
) -> AnchorLosses:
    """Losses of all anchors of the batch, in its view-major order, on every process.

    The gradient is that of the sum of what all processes make of the losses.

    Args:
        problem: this process's own rows, as if they were all.
        labels: `(B,)`, of the samples of all processes one after another.
        samples: how many of them each process has.
        views: rows of each sample.
        keep: other samples of its class that an anchor keeps as positives; None: all.
        group: the processes.
    """
    spread = Spread.of(problem, labels, samples, views, keep, group)
    rows = problem.rows[spread.row_order]
    anchors = rows if spread.layout.symmetric else problem.anchors[spread.anchor_order]
    losses, valid = _Ring.apply(anchors, rows, spread)
    back = torch.argsort(spread.anchor_places)
    return AnchorLosses(losses[back], valid[back])


@dataclass(frozen=True)
class Spread:
    """Who holds which rows, and what is to be computed of them.

    Places in the layout go process by process, and by label within each.

    Attributes:
        layout: of the whole batch.
        anchor_blocks: the places of each process's anchors.
        row_blocks: the places of each process's rows.
        anchor_order: sorts this process's anchors.
        row_order: sorts this process's rows.
        anchor_places: `(A,)`, the batch's view-major order: where the anchor of each place stands in it.
        rank: of this process.
        group: the processes.
    """

    layout: Layout
    anchor_blocks: list[slice]
    row_blocks: list[slice]
    anchor_order: Tensor
    row_order: Tensor
    anchor_places: Tensor
    rank: int
    group: ProcessGroup
    temperature: float
    summation: str
    denominator: str
    shifted: bool

    @staticmethod
    def of(
        problem: Problem, labels: Tensor, samples: list[int], views: int, keep: int | None, group: ProcessGroup
    ) -> "Spread":
        """The plan that every process makes alike; see `anchor_losses`."""
        rank = dist.get_rank(group)
        anchor_views = views if problem.symmetric else 1
        rows = [order_of(labels, block, views) for block in blocks(samples)]
        anchors = [order_of(labels, block, anchor_views) for block in blocks(samples)]
        row_places, anchor_places = (torch.cat([places for _, places in side]) for side in (rows, anchors))
        cap = None if keep is None else rank_cap(labels.repeat(views), views, keep, len(labels) * anchor_views)
        layout = Layout(
            anchor_labels=labels.repeat(anchor_views)[anchor_places],
            row_labels=labels.repeat(views)[row_places],
            anchor_ids=anchor_places,
            row_ids=row_places,
            cap=cap and Cap(cap.anchor_rank[anchor_places], cap.anchor_limit[anchor_places], cap.row_rank[row_places]),
            symmetric=problem.symmetric,
        )
        return Spread(
            layout=layout,
            anchor_blocks=blocks([number * anchor_views for number in samples]),
            row_blocks=blocks([number * views for number in samples]),
            anchor_order=anchors[rank][0],
            row_order=rows[rank][0],
            anchor_places=anchor_places,
            rank=rank,
            group=group,
            temperature=problem.temperature,
            summation=problem.summation,
            denominator=problem.denominator,
            shifted=not problem.bound <= SAFE_EXPONENT[problem.rows.dtype],
        )

    @property
    def peers(self) -> list[int]:
        """The processes whose rows this one meets, itself first."""
        number = len(self.row_blocks)
        meets = number // 2 + 1 if self.layout.symmetric else number
        return [(self.rank + step) % number for step in range(meets)]

    def tiles(self, peer: int) -> Tiles:
        """The tiles of this process's anchors with the rows of a peer that are its to compute."""
        mine, theirs = self.anchor_blocks[self.rank], self.row_blocks[peer]
        found = self.layout.tiles(mine, theirs)
        number = len(self.row_blocks)
        if not self.layout.symmetric or peer == self.rank or (peer - self.rank) * 2 % number:
            return list(found)
        # the two meet each other: each takes every other tile
        return [
            (tile, boxes)
            for tile, boxes in found
            if (tile[0].start - mine.start + tile[1].start - theirs.start) // layouts.TILE % 2 == (self.rank < peer)
        ]

    def visits(self, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Each peer and its rows, the next on their way meanwhile; `rows` are this process's own."""
        peers = self.peers
        block = rows
        for peer, after in zip(peers, [*peers[1:], None], strict=True):
            coming = None if after is None else self.exchange(rows, sender=after, step=(after - self.rank))
            yield peer, block
            if coming is not None:
                block = coming.wait()

    def exchange(self, rows: Tensor, sender: int, step: int) -> "Parcel":
        """Send rows to the process `step` before this one, or of one's own to another, and take those of the sender."""
        number = len(self.row_blocks)
        receiver = (self.rank - step) % number
        block = self.row_blocks[sender]
        return Parcel.post(rows, receiver, rows.new_empty(block.stop - block.start, rows.shape[1]), sender, self.group)

    def send_home(self, gradient: Tensor, peer: int) -> "Parcel":
        """Send a peer the gradient of its rows, and take that of one's own from the process that met them."""
        number = len(self.row_blocks)
        sender = (2 * self.rank - peer) % number
        own = self.row_blocks[self.rank]
        taken = gradient.new_empty(own.stop - own.start, gradient.shape[1])
        return Parcel.post(gradient, peer, taken, sender, self.group)


@dataclass
class Parcel:
    """Rows on their way."""

    requests: list[Any]
    sent: Tensor  # kept until it has left
    taken: Tensor
    group: ProcessGroup

    @staticmethod
    def post(sent: Tensor, receiver: int, taken: Tensor, sender: int, group: ProcessGroup) -> "Parcel":
        """Start to send and to receive; nothing travels where there are no rows."""
        sent = sent.contiguous()
        operations = []
        if len(sent):
            operations.append(dist.P2POp(dist.isend, sent, dist.get_global_rank(group, receiver), group))
        if len(taken):
            operations.append(dist.P2POp(dist.irecv, taken, dist.get_global_rank(group, sender), group))
        with collectives.naming_the_lost(group):
            requests = dist.batch_isend_irecv(operations) if operations else []
        return Parcel(requests, sent, taken, group)

    def wait(self) -> Tensor:
        """What was received."""
        with collectives.naming_the_lost(self.group):
            for request in self.requests:
                request.wait()
        return self.taken


@dataclass(frozen=True)
class Kept:
    """Rows of two blocks, found by their places in the layout."""

    blocks: list[tuple[slice, Tensor]]

    def __getitem__(self, rows: slice) -> Tensor:
        """The rows of a slice that lies in one of the blocks."""
        for block, tensor in self.blocks:
            if block.start <= rows.start and rows.stop <= block.stop:
                return tensor[rows.start - block.start : rows.stop - block.start]
        raise KeyError(rows)


class _Ring(torch.autograd.Function):
    """Sorted own anchors and rows to the losses of all anchors `(A,)` by place, and their validity."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, rows: Tensor, spread: Spread) -> tuple[Tensor, Tensor]:
        layout, group = spread.layout, spread.group
        scaled = anchors / spread.temperature
        log_neg = anchors.new_full((len(layout.anchor_labels),), -torch.inf)
        for peer, block in spread.visits(rows):
            passes = passes_of(spread, anchors, scaled, block, peer)
            for part in shared_out(passes.log_negatives, spread.tiles(peer), anchors.device):
                log_neg = torch.logaddexp(log_neg, part)
        log_neg = collectives.all_logsumexp(log_neg, group)
        start = Statistics.of(log_neg, spread.summation, spread.denominator)
        statistics = start.copy()
        for peer, block in spread.visits(rows):
            passes = passes_of(spread, anchors, scaled, block, peer)
            boxes = [
                (box, layout.symmetric and tile[0] != tile[1]) for tile, found in spread.tiles(peer) for box in found
            ]
            parts = shared_out(partial(passes.positives, start), boxes, anchors.device)
            statistics = Statistics.merged([statistics, *parts])
        losses, valid = statistics.reduced(group).losses()
        ctx.mark_non_differentiable(valid)
        ctx.save_for_backward(anchors, rows, valid, statistics.table)
        ctx.spread = spread
        return losses, valid

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor, Tensor | None, None]:
        anchors, rows, valid, table = ctx.saved_tensors
        spread: Spread = ctx.spread
        symmetric = spread.layout.symmetric
        upstream = collectives.all_reduce(torch.where(valid, upstream, 0), spread.group)
        statistics = Statistics(table, spread.summation, spread.denominator)
        scaled = anchors / spread.temperature
        grad_anchors = torch.zeros_like(anchors)
        grad_rows = grad_anchors if symmetric else torch.zeros_like(rows)
        on_their_way: list[Parcel] = []
        for peer, block in spread.visits(rows):
            passes = passes_of(spread, anchors, scaled, block, peer)
            weight = passes.negative_weight(statistics, upstream)
            home = peer == spread.rank

            def gradients(tiles: Tiles, *, passes: Passes, block: Tensor, peer: int, home: bool, weight: Tensor) -> Any:
                of_anchors = torch.zeros_like(anchors)
                of_block = of_anchors if home and symmetric else torch.zeros_like(block)
                kept_anchors = Kept([(spread.anchor_blocks[spread.rank], of_anchors)])
                kept_rows = Kept([(spread.row_blocks[peer], of_block)])
                passes.gradients(tiles, statistics, upstream, weight, kept_anchors, kept_rows)
                return of_anchors, of_block

            work = partial(gradients, passes=passes, block=block, peer=peer, home=home, weight=weight)
            (of_anchors, of_block), *others = shared_out(work, spread.tiles(peer), anchors.device)
            for more_anchors, more_block in others:
                of_anchors += more_anchors
                if more_block is not more_anchors:
                    of_block += more_block
            grad_anchors += of_anchors
            for parcel in on_their_way:
                grad_rows += parcel.wait()
            on_their_way = []
            if not home:
                on_their_way.append(spread.send_home(of_block, peer))
            elif not symmetric:
                grad_rows += of_block
        for parcel in on_their_way:
            grad_rows += parcel.wait()
        grad_anchors /= spread.temperature
        return grad_anchors, None if symmetric else grad_rows.div_(spread.temperature), None


def passes_of(spread: Spread, anchors: Tensor, scaled: Tensor, block: Tensor, peer: int) -> Passes:
    """The passes over this process's anchors and the rows of a peer."""
    mine = spread.anchor_blocks[spread.rank]
    return Passes(
        anchors=Kept([(mine, anchors)]),
        scaled=Kept([(mine, scaled)]),
        rows=Kept([(spread.row_blocks[peer], block)]),
        layout=spread.layout,
        dtype=anchors.dtype,
        shifted=spread.shifted,
    )


def blocks(numbers: list[int]) -> list[slice]:
    """Slices of these lengths, one after another."""
    return [slice(stop - number, stop) for number, stop in zip(numbers, accumulate(numbers), strict=True)]


def order_of(labels: Tensor, block: slice, views: int) -> tuple[Tensor, Tensor]:
    """What sorts a process's view-major rows by label, and their places in the view-major order of the batch."""
    samples = torch.arange(block.start, block.stop, device=labels.device)
    places = (torch.arange(views, device=labels.device)[:, None] * len(labels) + samples).flatten()
    order = torch.argsort(labels[samples].repeat(views), stable=True)
    return order, places[order]
