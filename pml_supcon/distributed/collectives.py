"""Collectives over rows that processes hold different numbers of, and errors that reach every process.

A process that fails before a collective would leave the others waiting. So processes compare notes first
(`agree`), and one whose peer is gone says which (`naming_the_lost`). What one process runs into between the two, such
as an out-of-memory error inside a loss, the others learn only when it leaves.
"""

import os
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

ANSWER_S = 5.0  # how long a process on another machine may take to say that it is there

_known: dict[str, tuple[Any, dict[int, tuple[int, str]]]] = {}  # by group: its store, and who is who


def group_size(group: dist.ProcessGroup | None) -> int:
    """Processes in the group; 1 without a group."""
    return 1 if group is None else dist.get_world_size(group)


def default_group(group: dist.ProcessGroup | None = None) -> dist.ProcessGroup | None:
    """The group, or the default one; None where one process is all there is."""
    if group is None and dist.is_available() and dist.is_initialized():
        group = dist.group.WORLD
    if group is not None and dist.get_rank(group) < 0:
        raise ValueError(f"Expected a process of the group, but got rank {dist.get_rank()}, which is not in it")
    return group if group_size(group) > 1 else None


def device_of(group: dist.ProcessGroup) -> torch.device:
    """Where all processes of the group can run a collective, whatever they hold."""
    backend = str(dist.get_backend(group))
    on_host = "gloo" in backend or "mpi" in backend or not torch.cuda.is_available()
    return torch.device("cpu" if on_host else "cuda")


def all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`(W, *x.shape)`: the tensors of all processes, which have one shape and dtype; no gradient."""
    gathered = x.new_empty(group_size(group), *x.shape)
    with naming_the_lost(group):
        dist.all_gather_into_tensor(gathered.flatten(0, 1) if x.ndim else gathered, x.contiguous(), group=group)
    return gathered


def all_reduce(x: Tensor, group: dist.ProcessGroup, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """The sum (or maximum) over all processes, in place."""
    with naming_the_lost(group):
        dist.all_reduce(x, op, group=group)
    return x


def all_logsumexp(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Elementwise log of the sum of `exp(x)` over all processes; minus infinity where all are."""
    shift = all_reduce(x.clone(), group, dist.ReduceOp.MAX).clamp(min=torch.finfo(x.dtype).min)
    return all_reduce((x - shift).exp(), group).log().add_(shift)


def all_gather_rows(rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """The rows of all processes one after another, process `r` giving `sizes[r]` of them; no gradient."""
    most = max(sizes)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = all_gather(padded, group)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def reduce_scatter_rows(rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """The sum over all processes of the rows that are this process's own, in at least float32."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    most, rank = max(sizes), dist.get_rank(group)
    padded = rows.new_zeros(len(sizes), most, *rows.shape[1:])
    for part, own in zip(padded, rows.split(list(sizes)), strict=True):
        part[: len(own)] = own
    summed = torch.empty_like(padded[0])
    with naming_the_lost(group):
        dist.reduce_scatter_tensor(summed, padded.flatten(0, 1), group=group)
    return summed[: sizes[rank]]


def gather_rows(rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """`all_gather_rows` with a gradient: each process ends with the sum of what all computed for its rows."""
    gathered: Tensor = _GatherRows.apply(rows, tuple(sizes), group)
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: tuple[int, ...], group: dist.ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        return all_gather_rows(rows, sizes, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return reduce_scatter_rows(gradient, ctx.sizes, ctx.group).to(gradient.dtype), None, None


def from_first(make: Callable[[], Sequence[Tensor]], group: dist.ProcessGroup) -> list[Tensor]:
    """What the group's first process makes, on all; also the error that it runs into.

    Raises:
        RuntimeError: making failed; names the rank and the error.
    """
    first = dist.get_global_rank(group, 0)
    made: list[Any] = [None, None]
    if dist.get_rank() == first:
        try:
            made[0] = [indices.cpu() for indices in make()]
        except Exception as error:
            made[1] = f"{type(error).__name__}: {error}"
    with naming_the_lost(group):
        dist.broadcast_object_list(made, first, group=group, device=device_of(group))
    if made[1] is not None:
        raise RuntimeError(f"rank 0: {made[1]}")
    tensors: list[Tensor] = made[0]
    return tensors


def agree(
    sizes: Mapping[str, int],
    same: Mapping[str, str],
    error: Exception | None,
    group: dist.ProcessGroup,
) -> dict[str, list[int]]:
    """What each process says of itself, by rank; an error on every process where they do not fit together.

    Args:
        sizes: numbers that may differ between processes.
        same: what has to be the same on all processes, by what it is called.
        error: what is wrong on this process, if anything.
        group: the processes.

    Raises:
        ValueError: a process has an error, or differs; the message names rank and value.
    """
    digest = zlib.crc32(repr(sorted(same.items())).encode())  # unlike `hash` the same in all processes
    notes = torch.tensor([error is not None, digest, *sizes.values()], device=device_of(group))
    everyone: list[list[int]] = all_gather(notes, group).tolist()
    if any(wrong for wrong, *_ in everyone) or len({digest for _, digest, *_ in everyone}) > 1:
        said: list[Any] = [None] * group_size(group)
        with naming_the_lost(group):
            dist.all_gather_object(said, (None if error is None else said_by(error), dict(same)), group=group)
        raise ValueError(disagreement(said)) from error
    return {name: [notes[2 + i] for notes in everyone] for i, name in enumerate(sizes)}


def said_by(error: Exception) -> str:
    """An error in words, with its kind where that is not one of ours."""
    return str(error) if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {error}"


def disagreement(said: Sequence[tuple[str | None, Mapping[str, str]]]) -> str:
    """Which ranks have an error, or else which of the values that should be the same differ, by rank."""
    wrong = [f"rank {rank}: {error}" for rank, (error, _) in enumerate(said) if error is not None]
    if wrong:
        return "; ".join(wrong)
    names = dict.fromkeys(name for _, same in said for name in same)
    differ = [name for name in names if len({same.get(name) for _, same in said}) > 1]
    values = [
        f"{name}: " + ", ".join(f"{same.get(name)} on rank {rank}" for rank, (_, same) in enumerate(said))
        for name in differ
    ]
    return "Expected all processes to have the same, but got " + "; ".join(values)


@contextmanager
def naming_the_lost(group: dist.ProcessGroup) -> Iterator[None]:
    """Turn the failure of a collective into an error that says which ranks are gone.

    Raises:
        ConnectionError: a collective failed; names the ranks that no longer run, where that can be found out.
    """
    try:
        introduce(group)
        yield
    except RuntimeError as error:
        who = lost_ranks(group)
        raise ConnectionError(f"A collective of {group_size(group)} processes failed: {who} ({error})") from error


def introduce(group: dist.ProcessGroup) -> None:
    """Let the processes of a group know each other, once, so that they can find out later which of them still run."""
    if group.group_name not in _known or _known[group.group_name][0] is not store():
        addresses: list[Any] = [None] * group_size(group)
        dist.all_gather_object(addresses, (os.getpid(), socket.gethostname()), group=group)
        _known[group.group_name] = store(), dict(zip(dist.get_process_group_ranks(group), addresses, strict=True))


def lost_ranks(group: dist.ProcessGroup) -> str:
    """What can be found out about who is missing, once a collective of the group has failed."""
    me = dist.get_rank()
    addresses: dict[int, tuple[int, str]] = _known.get(group.group_name, (None, {}))[1]
    gone = [rank for rank, address in addresses.items() if rank != me and not runs(*address)]
    others = [rank for rank in dist.get_process_group_ranks(group) if rank != me and rank not in gone]
    silent: list[int] = []
    try:
        reports = [key for rank in others if store().check([key := f"pml_supcon/lost/{rank}"])]
        if reports:  # who failed first knows best: later ones also see the first ones leave
            gone = [int(rank) for rank in store().get(reports[0]).decode().split()]
        elif gone:
            store().set(f"pml_supcon/lost/{me}", " ".join(map(str, gone)))
        store().set(f"pml_supcon/failed/{me}", "")
        if me == 0 or not gone:  # the store may live in rank 0, and the others have to read it
            silent = without_answer([rank for rank in others if rank not in gone])
            gone = gone or [rank for rank in silent if rank in addresses and not runs(*addresses[rank])]  # by now
    except (RuntimeError, OSError):
        silent = []  # the store is gone too
    if gone:
        return f"rank {', '.join(map(str, gone))} was lost"
    return f"rank {', '.join(map(str, silent))} does not answer" if silent else "all ranks that can be seen still run"


def runs(pid: int, host: str) -> bool:
    """Whether a process runs, as far as this machine can tell; those of other machines count as running."""
    if host != socket.gethostname():
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()  # elsewhere than on Linux nobody knows
    except OSError:
        return True
    return state not in "ZX"  # dead, and not yet collected by its parent


def without_answer(ranks: Sequence[int]) -> list[int]:
    """Those that have not failed too, and so said that they are there, within a short time."""
    keys = {rank: f"pml_supcon/failed/{rank}" for rank in ranks}
    if not keys:
        return []
    try:
        store().wait(list(keys.values()), timedelta(seconds=ANSWER_S))
    except RuntimeError:
        return [rank for rank, key in keys.items() if not store().check([key])]
    return []


def store() -> Any:
    """The store of the default group."""
    return dist.distributed_c10d._get_default_store()
