"""Collectives over shards of different sizes, and errors that are raised on every process.

A process that fails before a collective would leave the others waiting. Processes therefore exchange their errors first
(``agree``), and a collective that fails names the ranks that are lost (``collective_errors``). An error on one process
between the two, such as running out of memory inside a loss, reaches the others only when that process exits.

Tensors may be on a device for which the group has no backend, such as CUDA tensors under gloo: each collective copies
them to a device that it has (``device_of``), and the result back. Gloo then waits for the device at each collective.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from pml_supcon.distributed.lost_ranks import collective_errors, current

# PyTorch 2.14 renamed both, and warns of the old names
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Callable[..., Any] = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

MINED = (3, 4)  # tensors of a miner: triplets, or pairs


def group_size(group: dist.ProcessGroup | None) -> int:
    """Return the number of processes in the group; 1 without a group."""
    return 1 if group is None else dist.get_world_size(group)


def default_group(group: dist.ProcessGroup | None = None) -> dist.ProcessGroup | None:
    """Return the group, or else the default group; None for a single process."""
    if group is None and dist.is_available() and dist.is_initialized():
        group = dist.group.WORLD
    if group is not None and dist.get_rank(group) < 0:
        raise ValueError(f"Expected a process of the group, but got rank {dist.get_rank()}, which is not in it")
    return group if group_size(group) > 1 else None


def device_of(group: dist.ProcessGroup, device: torch.device) -> torch.device:
    """Return the device on which the group's collectives take tensors that are on ``device``.

    It is ``device`` where the group has a backend for its type. Else it is the CPU, or the current device of the
    backend's type for a group without a backend for the CPU. Gloo and MPI take tensors on the CPU only.
    """
    types = set()
    for pair in dist.get_backend_config(group).split(","):
        device_type, backend = pair.split(":")
        types.add("cpu" if backend in ("gloo", "mpi") else device_type)
    if device.type in types:
        return device
    return torch.device("cpu" if "cpu" in types else types.pop())


def all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the tensors of all processes, of one shape and dtype, as ``(W, *x.shape)``; no gradient."""
    own = x.to(device_of(group, x.device)).contiguous()
    gathered = own.new_empty(group_size(group), *x.shape)
    with collective_errors(group, own.device):
        _all_gather(gathered.flatten(0, 1) if x.ndim else gathered, own, group=group)
    return gathered.to(x.device)


def all_reduce(x: Tensor, group: dist.ProcessGroup, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """Return the sum (or maximum) over all processes, in place."""
    staged = x.to(device_of(group, x.device))
    with collective_errors(group, staged.device):
        dist.all_reduce(staged, op, group=group)
    return x if staged is x else x.copy_(staged)


def all_logsumexp(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the elementwise log of the sum of ``exp(x)`` over all processes; minus infinity where all are."""
    # log sum_w exp(x_w) = m + log sum_w exp(x_w - m), with m the maximum over processes; the clamp avoids inf - inf.
    shift = all_reduce(x.clone(), group, dist.ReduceOp.MAX).clamp(min=torch.finfo(x.dtype).min)
    return all_reduce((x - shift).exp(), group).log().add_(shift)


def all_gather_rows(rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Concatenate the rows of all processes by rank, ``sizes[r]`` of process ``r``; no gradient."""
    # The collective needs equal shapes: pad to the longest shard, gather (W, most, ...), and drop the padding.
    most = max(sizes)
    if min(sizes) == most:
        return all_gather(rows, group).flatten(0, 1)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = all_gather(padded, group)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def reduce_scatter_rows(rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Return the sum over all processes of the rows of this process's shard, in at least float32."""
    # pad each shard to the longest, (W, most, ...); reduce-scatter; drop the padding
    device = rows.device
    rows = rows.to(device_of(group, device), torch.promote_types(rows.dtype, torch.float32))
    most, rank = max(sizes), dist.get_rank(group)
    padded = rows.new_zeros(len(sizes), most, *rows.shape[1:])
    for part, own in zip(padded, rows.split(list(sizes)), strict=True):
        part[: len(own)] = own
    summed = torch.empty_like(padded[0])
    with collective_errors(group, summed.device):
        _reduce_scatter(summed, padded.flatten(0, 1), group=group)
    return summed[: sizes[rank]].to(device)


def gather_rows(rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Concatenate the rows of all processes; backward sums the gradients of this shard over processes."""
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


def broadcast_from_first(
    make: Callable[[], Sequence[Tensor]], group: dist.ProcessGroup, device: torch.device
) -> list[Tensor]:
    """Call a miner on the group's first process and return its index tensors on ``device``, on all processes.

    Raises:
        RuntimeError: On all processes, if ``make`` fails or returns anything but 3 or 4 index tensors; the error names
            the rank and the cause.
    """
    # 1. lengths of the tensors, -1 for none; all -1 after an error
    mined: list[Tensor] = []
    report: list[str | None] = [None]
    if dist.get_rank(group) == 0:
        try:
            mined = [indices_of(indices, device) for indices in make()]
            if len(mined) not in MINED:
                raise ValueError(f"Expected a miner to return 3 or 4 index tensors, but got {len(mined)}")
        except Exception as error:
            mined, report = [], [f"{type(error).__name__}: {error}"]
    lengths = [len(indices) for indices in mined] + [-1] * (max(MINED) - len(mined))
    lengths = [length for length in exchange(lengths, group, device)[0] if length >= 0]
    first = dist.get_global_rank(group, 0)
    if not lengths:
        with collective_errors(group, staged := device_of(group, device)):
            dist.broadcast_object_list(report, first, group=group, device=staged)
        raise RuntimeError(f"rank 0: {report[0]}")
    # 2. all tensors as one, without the host where the group takes tensors on the device
    together = torch.cat(mined) if mined else torch.empty(sum(lengths), dtype=torch.int64, device=device)
    together = together.to(device_of(group, device))
    with collective_errors(group, together.device):
        dist.broadcast(together, first, group=group)
    return list(together.to(device).split(lengths))


def indices_of(indices: Any, device: torch.device) -> Tensor:
    """Return an index tensor of a miner as int64 on a device."""
    empty = isinstance(indices, Tensor) and indices.numel() == 0  # some miners give an empty float tensor
    if not isinstance(indices, Tensor) or indices.ndim != 1 or (indices.dtype != torch.int64 and not empty):
        given = f"{tuple(indices.shape)} {indices.dtype}" if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"Expected a miner to return one-dimensional int64 tensors, but got {given}")
    return indices.to(device, torch.int64)


def exchange(values: Sequence[int], group: dist.ProcessGroup, device: torch.device) -> list[list[int]]:
    """Return the values of all processes by rank, an equal number each, without waiting for work queued on ``device``.

    A group with a backend for the CPU exchanges them there. Else a stream of its own carries them: on the current
    stream the host would wait for the forward pass.
    """
    host = torch.tensor(values, dtype=torch.int64, device="cpu")  # whatever the default device
    staged = device_of(group, host.device)
    if staged.type != "cuda":
        return all_gather(host, group).tolist()
    staged = device_of(group, device)  # the device of the embeddings, which may not be the current one
    with current(staged), torch.cuda.stream(stream_of(torch.cuda.current_device())):
        record = host.pin_memory().to(staged, non_blocking=True)
        return all_gather(record, group).tolist()  # waits for this stream alone


@cache
def stream_of(device: int) -> "torch.cuda.Stream":
    """Return the stream of a device for the exchange of sizes."""
    return torch.cuda.Stream(device)


def agree(
    sizes: Mapping[str, int],
    same: Mapping[str, str],
    error: Exception | None,
    group: dist.ProcessGroup,
    device: torch.device,
) -> dict[str, list[int]]:
    """Return each of ``sizes`` by rank; they may differ between processes. Nothing waits for work on ``device``.

    The processes agree at each call: a process cannot see that only another one has fewer rows, at the end of an epoch
    for example.

    Raises:
        ValueError: On every process, if one has an ``error`` or a value in ``same`` differs; the error names the rank
            and the value.
    """
    digest = zlib.crc32(repr(sorted(same.items())).encode())  # unlike `hash` the same in all processes
    everyone = exchange([error is not None, digest, *sizes.values()], group, device)
    if any(wrong for wrong, *_ in everyone) or len({digest for _, digest, *_ in everyone}) > 1:
        name = "" if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: "
        reports: list[Any] = [None] * group_size(group)
        with collective_errors(group, device_of(group, device)):
            dist.all_gather_object(reports, (None if error is None else f"{name}{error}", dict(same)), group=group)
        raise ValueError(disagreement(reports)) from error
    return {name: [record[2 + i] for record in everyone] for i, name in enumerate(sizes)}


def disagreement(reports: Sequence[tuple[str | None, Mapping[str, str]]]) -> str:
    """Return the errors by rank, or else the values that differ between ranks."""
    wrong = [f"rank {rank}: {error}" for rank, (error, _) in enumerate(reports) if error is not None]
    if wrong:
        return "; ".join(wrong)
    names = dict.fromkeys(name for _, same in reports for name in same)
    values = [
        f"{name}: " + ", ".join(f"{same.get(name)} on rank {rank}" for rank, (_, same) in enumerate(reports))
        for name in names
        if len({same.get(name) for _, same in reports}) > 1
    ]
    return "Expected all processes to have the same, but got " + "; ".join(values)
