"""Errors of collectives that name the ranks that are lost.

A failed gloo collective names an address at best, NCCL names nothing, and torchelastic reports a lost rank only in
its launcher's log. Here every process stores the process ids of the ranks on its machine, and checks through the
default group's store that the other ranks have reported.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ANSWER_S = 5.0  # time for a process on another machine to report

_addresses: dict[str, tuple[Any, dict[int, tuple[int, str]]]] = {}  # by group: its store; (pid, host) by rank


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which a device is the current one of its type, if it is a GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def collective_errors(group: dist.ProcessGroup, device: torch.device) -> Iterator[None]:
    """Turn the failure of a collective into an error that names the lost ranks.

    The device of the collective's tensors is the current one inside: NCCL sends objects, and transfers between two
    processes, over the current device.

    Raises:
        ConnectionError: If a collective fails; the error names the ranks that no longer run, as far as this process
            can tell.
    """
    try:
        with current(device):
            exchange_addresses(group)
            yield
    except RuntimeError as error:
        who = lost_ranks(group)
        raise ConnectionError(
            f"A collective of {dist.get_world_size(group)} processes failed: {who} ({error})"
        ) from error


def exchange_addresses(group: dist.ProcessGroup) -> None:
    """Exchange process ids and host names in a group, once, for ``lost_ranks``."""
    if group.group_name not in _addresses or _addresses[group.group_name][0] is not store():
        addresses: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(addresses, (os.getpid(), socket.gethostname()), group=group)
        _addresses[group.group_name] = store(), dict(zip(dist.get_process_group_ranks(group), addresses, strict=True))


def lost_ranks(group: dist.ProcessGroup) -> str:
    """Return a sentence on the missing ranks, after a collective of the group has failed."""
    me = dist.get_rank()
    addresses: dict[int, tuple[int, str]] = _addresses.get(group.group_name, (None, {}))[1]
    gone = [rank for rank, address in addresses.items() if rank != me and not runs(*address)]
    others = [rank for rank in dist.get_process_group_ranks(group) if rank != me and rank not in gone]
    silent: list[int] = []
    try:
        reports = [key for rank in others if store().check([key := f"pml_supcon/lost/{rank}"])]
        if reports:  # the first report is correct: later reports also list ranks that exited because of the failure
            gone = [int(rank) for rank in store().get(reports[0]).decode().split()]
        elif gone:
            store().set(f"pml_supcon/lost/{me}", " ".join(map(str, gone)))
        store().set(f"pml_supcon/failed/{me}", "")
        if me == 0 or not gone:  # rank 0 may host the store: it stays until the others have read it
            silent = silent_ranks([rank for rank in others if rank not in gone])
            gone = gone or [rank for rank in silent if rank in addresses and not runs(*addresses[rank])]  # meanwhile
    except (RuntimeError, OSError):
        silent = []  # rank 0 is lost, and its store with it
    if gone:
        return f"rank {', '.join(map(str, gone))} was lost"
    return f"rank {', '.join(map(str, silent))} does not answer" if silent else "all reachable ranks are still running"


def runs(pid: int, host: str) -> bool:
    """Return True if a process runs, as far as this machine can tell; processes of other machines count as running."""
    if host != socket.gethostname():
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()  # without /proc (not Linux) it counts as running
    except OSError:
        return True
    return state not in "ZX"  # a zombie: dead, and not yet collected by its parent


def silent_ranks(ranks: Sequence[int]) -> list[int]:
    """Return the ranks that have not reported their own failure of the collective within ``ANSWER_S`` seconds."""
    keys = {rank: f"pml_supcon/failed/{rank}" for rank in ranks}
    if not keys:
        return []
    try:
        store().wait(list(keys.values()), timedelta(seconds=ANSWER_S))
    except RuntimeError:
        return [rank for rank, key in keys.items() if not store().check([key])]
    return []


def store() -> Any:
    """Return the store of the default group."""
    return dist.distributed_c10d._get_default_store()
