"""Real processes on this machine, in a gloo group."""

import gc
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_processes(work: Callable[..., Any], number: int, folder: Path, *arguments: Any) -> list[Any]:
    """Return the results of `work(rank, *arguments)` by rank; `work` is a function of a module."""
    mp.spawn(_process, args=(number, str(folder), work, arguments), nprocs=number)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(number)]


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _process(rank: int, number: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=number)
    try:
        torch.save(work(rank, *arguments), f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        gc.collect()  # a caught error and its frames are a cycle that holds the group: its threads abort a late exit
        dist.destroy_process_group()
