"""Blocks of rows on their way between processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from pml_supcon.distributed import collectives
from pml_supcon.functional.supcon.global_batch.shard_plan import Spread


def visits(spread: Spread, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each peer and its rows, the next block on its way meanwhile; `rows` are this process's own, the first visit."""
    peers = spread.peers
    block = rows
    for peer, after in zip(peers, [*peers[1:], None], strict=True):
        coming = None
        if after is not None:
            number = len(spread.row_blocks)
            receiver = (2 * spread.rank - after) % number  # whom this process visits when `after` visits it
            coming = Parcel.post(rows, receiver, new_block(rows, spread, after), after, spread.group)
        yield peer, block
        if coming is not None:
            block = coming.wait()


def send_home(spread: Spread, gradient: Tensor, peer: int) -> "Parcel":
    """Send a peer the gradient of its rows, and take that of one's own from the process that they visited meanwhile."""
    host = (2 * spread.rank - peer) % len(spread.row_blocks)
    return Parcel.post(gradient, peer, new_block(gradient, spread, spread.rank), host, spread.group)


def new_block(like: Tensor, spread: Spread, process: int) -> Tensor:
    """Room for the rows of a process."""
    block = spread.row_blocks[process]
    return like.new_empty(block.stop - block.start, like.shape[1])


@dataclass
class Parcel:
    """Rows sent and rows awaited."""

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
        """What was awaited."""
        with collectives.naming_the_lost(self.group):
            for request in self.requests:
                request.wait()
        return self.taken
