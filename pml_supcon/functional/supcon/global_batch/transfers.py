"""Point-to-point transfers of blocks of rows between the processes of the ring."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from pml_supcon.distributed.collectives import device_of
from pml_supcon.distributed.lost_ranks import collective_errors
from pml_supcon.functional.supcon.global_batch.shard_plan import ShardPlan


def rotate_blocks(plan: ShardPlan, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield each peer and its rows, the first being this process with ``rows``, while the next block is in flight.

    In the step in which we receive the block of rank ``r + k``, rank ``r - k`` receives ours.
    """
    peers = plan.peers
    block = rows
    for peer, after in zip(peers, [*peers[1:], None], strict=True):
        incoming = None
        if after is not None:
            # step k: after = r + k, so the receiver is r - k = 2 r - after (mod W)
            receiver = (2 * plan.rank - after) % len(plan.row_blocks)
            incoming = P2PTransfer.post(rows, receiver, new_block(rows, plan, after), after, plan.group)
        yield peer, block
        if incoming is not None:
            block = incoming.wait()


def return_gradient(plan: ShardPlan, gradient: Tensor, peer: int) -> "P2PTransfer":
    """Return a peer's gradient to it; receive ours from the process that last held our block."""
    host = (2 * plan.rank - peer) % len(plan.row_blocks)
    return P2PTransfer.post(gradient, peer, new_block(gradient, plan, plan.rank), host, plan.group)


def new_block(like: Tensor, plan: ShardPlan, process: int) -> Tensor:
    """Return an empty block for the rows of a process."""
    block = plan.row_blocks[process]
    return like.new_empty(block.stop - block.start, like.shape[1])


@dataclass
class P2PTransfer:
    """A block being sent and a block being received, both on a device that the group's backend takes."""

    requests: list[Any]
    sent: Tensor  # referenced until it is sent
    incoming: Tensor
    received: Tensor  # the incoming block, on the device of the rows
    group: ProcessGroup

    @staticmethod
    def post(sent: Tensor, receiver: int, received: Tensor, sender: int, group: ProcessGroup) -> "P2PTransfer":
        """Start to send and to receive; a block without rows is not transferred."""
        device = device_of(group, sent.device)
        sent = sent.to(device).contiguous()
        incoming = received if received.device == device else torch.empty_like(received, device=device)
        operations = []
        if len(sent):
            operations.append(dist.P2POp(dist.isend, sent, dist.get_global_rank(group, receiver), group))
        if len(received):
            operations.append(dist.P2POp(dist.irecv, incoming, dist.get_global_rank(group, sender), group))
        with collective_errors(group, device):
            requests = dist.batch_isend_irecv(operations) if operations else []
        return P2PTransfer(requests, sent, incoming, received, group)

    def wait(self) -> Tensor:
        """Wait for both blocks and return the received one."""
        with collective_errors(self.group, self.sent.device):
            for request in self.requests:
                request.wait()
        return self.received if self.received is self.incoming else self.received.copy_(self.incoming)
