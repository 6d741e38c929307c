"""Collectives over shards of different sizes, and errors that are raised on every process.

A process that fails before a collective would leave the others waiting. Processes therefore exchange their errors first
(``agree``), and a collective that fails names the ranks that are lost (``collective_errors``). An error on one process
between the two, such as running out of memory inside a loss, reaches the others only when that process exits.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from pml_supcon.distributed.lost_ranks import collective_errors


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


def device_of(group: dist.ProcessGroup) -> torch.device:
    """Return the device on which all processes of the group can run a collective."""
    backend = str(dist.get_backend(group))
    on_host = "gloo" in backend or "mpi" in backend or not torch.cuda.is_available()
    return torch.device("cpu" if on_host else "cuda")


def all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the tensors of all processes, of one shape and dtype, as ``(W, *x.shape)``; no gradient."""
    gathered = x.new_empty(group_size(group), *x.shape)
    with collective_errors(group):
        dist.all_gather_into_tensor(gathered.flatten(0, 1) if x.ndim else gathered, x.contiguous(), group=group)
    return gathered


def all_reduce(x: Tensor, group: dist.ProcessGroup, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """Return the sum (or maximum) over all processes, in place."""
    with collective_errors(group):
        dist.all_reduce(x, op, group=group)
    return x


def all_logsumexp(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the elementwise log of the sum of ``exp(x)`` over all processes; minus infinity where all are."""
    # log sum_w exp(x_w) = m + log sum_w exp(x_w - m), with m the maximum over processes; the clamp avoids inf - inf.
    shift = all_reduce(x.clone(), group, dist.ReduceOp.MAX).clamp(min=torch.finfo(x.dtype).min)
    return all_reduce((x - shift).exp(), group).log().add_(shift)


def all_gather_rows(rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Concatenate the rows of all processes by rank, ``sizes[r]`` of process ``r``; no gradient."""
    # The collective needs equal shapes: pad to the longest shard, gather (W, most, ...), and drop the padding.
    most = max(sizes)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = all_gather(padded, group)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def reduce_scatter_rows(rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Return the sum over all processes of the rows of this process's shard, in at least float32."""
    # pad each shard to the longest, (W, most, ...); reduce-scatter; drop the padding
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    most, rank = max(sizes), dist.get_rank(group)
    padded = rows.new_zeros(len(sizes), most, *rows.shape[1:])
    for part, own in zip(padded, rows.split(list(sizes)), strict=True):
        part[: len(own)] = own
    summed = torch.empty_like(padded[0])
    with collective_errors(group):
        dist.reduce_scatter_tensor(summed, padded.flatten(0, 1), group=group)
    return summed[: sizes[rank]]


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


def broadcast_from_first(make: Callable[[], Sequence[Tensor]], group: dist.ProcessGroup) -> list[Tensor]:
    """Call ``make`` on the group's first process and return its tensors, or raise its error, on all processes.

    Raises:
        RuntimeError: If ``make`` fails; the error names the rank and the cause.
    """
    first = dist.get_global_rank(group, 0)
    result: list[Any] = [None, None]  # the tensors, and the error
    if dist.get_rank() == first:
        try:
            result[0] = [indices.cpu() for indices in make()]
        except Exception as error:
            result[1] = f"{type(error).__name__}: {error}"
    with collective_errors(group):
        dist.broadcast_object_list(result, first, group=group, device=device_of(group))
    if result[1] is not None:
        raise RuntimeError(f"rank 0: {result[1]}")
    return result[0]  # type: ignore[no-any-return]


def agree(
    sizes: Mapping[str, int | Tensor], same: Mapping[str, str], error: Exception | None, group: dist.ProcessGroup
) -> dict[str, list[int]]:
    """Return each of ``sizes`` by rank; they may differ between processes.

    A size may be a scalar int64 tensor on ``device_of(group)``, which is not read on the host before it is gathered.

    Raises:
        ValueError: On every process, if one has an ``error`` or a value in ``same`` differs; the error names the rank
            and the value.
    """
    digest = zlib.crc32(repr(sorted(same.items())).encode())  # unlike `hash` the same in all processes
    record = torch.tensor([error is not None, digest, *(0 for _ in sizes)], device=device_of(group))
    for position, size in enumerate(sizes.values(), 2):
        record[position] = size
    everyone: list[list[int]] = all_gather(record, group).tolist()
    if any(wrong for wrong, *_ in everyone) or len({digest for _, digest, *_ in everyone}) > 1:
        name = "" if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: "
        reports: list[Any] = [None] * group_size(group)
        with collective_errors(group):
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
