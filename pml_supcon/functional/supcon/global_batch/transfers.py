"""Blocks of rows on their way between processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from pml_supcon.distributed import collectives
from pml_supcon.functional.supcon.global_batch.shard_plan import ShardPlan


def rotate_blocks(plan: ShardPlan, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each peer and its rows, the next block on its way meanwhile; `rows` are this process's own, the first visit."""
    peers = plan.peers
    block = rows
    for peer, after in zip(peers, [*peers[1:], None], strict=True):
        coming = None
        if after is not None:
            number = len(plan.row_blocks)
            receiver = (2 * plan.rank - after) % number  # the process that gets our rows in this step
            coming = P2PTransfer.post(rows, receiver, new_block(rows, plan, after), after, plan.group)
        yield peer, block
        if coming is not None:
            block = coming.wait()


def return_gradient(plan: ShardPlan, gradient: Tensor, peer: int) -> "P2PTransfer":
    """Send a peer the gradient of its rows, and take that of one's own from the process that they visited meanwhile."""
    host = (2 * plan.rank - peer) % len(plan.row_blocks)
    return P2PTransfer.post(gradient, peer, new_block(gradient, plan, plan.rank), host, plan.group)


def new_block(like: Tensor, plan: ShardPlan, process: int) -> Tensor:
    """Room for the rows of a process."""
    block = plan.row_blocks[process]
    return like.new_empty(block.stop - block.start, like.shape[1])


@dataclass
class P2PTransfer:
    """Rows sent and rows awaited."""

    requests: list[Any]
    sent: Tensor  # kept until it has left
    taken: Tensor
    group: ProcessGroup

    @staticmethod
    def post(sent: Tensor, receiver: int, taken: Tensor, sender: int, group: ProcessGroup) -> "P2PTransfer":
        """Start to send and to receive; nothing travels where there are no rows."""
        sent = sent.contiguous()
        operations = []
        if len(sent):
            operations.append(dist.P2POp(dist.isend, sent, dist.get_global_rank(group, receiver), group))
        if len(taken):
            operations.append(dist.P2POp(dist.irecv, taken, dist.get_global_rank(group, sender), group))
        with collectives.collective_errors(group):
            requests = dist.batch_isend_irecv(operations) if operations else []
        return P2PTransfer(requests, sent, taken, group)

    def wait(self) -> Tensor:
        """What was awaited."""
        with collectives.collective_errors(self.group):
            for request in self.requests:
                request.wait()
        return self.taken
