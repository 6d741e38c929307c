"""Measure the cost of a global batch for each of W processes (products, memory, time) and the error of its gradient.

    python benchmarks/processes.py [--quick]

A batch of N = 8,192 rows (D = 128, 100 classes, two views, float32) is split equally over 1, 2 and 4 processes with one
thread each: ours under `GlobalBatchLoss`, PML's `SupConLoss` under its `DistributedLossWrapper` in both modes. A
step is the forward and the backward pass of the loss, from embeddings to their gradient.

- products: multiply-adds of all matrix products of a process, counted by torch's profiler, in units of `N^2 D`;
- memory: the highest peak of a process above its share of the rows;
- time: the median of the slowest process; with more processes than cores it does not fall as `1/W`;
- loss: the reported value, relative to the loss of one process with the whole batch;
- gradient error: the largest error of a process's gradient, averaged over processes as DDP does it, over the largest
  entry; the exact gradient is computed in float64, in tiles.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from subprocess import PIPE
from typing import Any

import torch
import torch.distributed as dist
from memory import MALLOC, peak_extra, run
from providers import TEMPERATURE, Case, Step, of_loss
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from records import MB
from tables import publish, shown
from torch import Tensor
from torch.profiler import profile

from pml_supcon.functional import supcon_loss
from pml_supcon.losses import GlobalBatchLoss, SupConLossOut

HEADER = ["a process's", "processes", "products, N^2 D", "memory, MB", "time, s", "loss", "gradient error"]
PROCESSES = (1, 2, 4)
LIMIT_S = 600


def make_loss(provider: str) -> Any:
    """Create the loss over the rows of all processes."""
    if provider == "pml_supcon":
        return GlobalBatchLoss(SupConLossOut(temperature=TEMPERATURE), num_views=2)
    return DistributedLossWrapper(pml.SupConLoss(temperature=TEMPERATURE), efficient=provider == "pml/efficient")


PROVIDERS = {
    "pml_supcon": "`GlobalBatchLoss(SupConLossOut)`",
    "pml/exact": "PML's `DistributedLossWrapper`",
    "pml/efficient": "PML's, `efficient=True`",
}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure every provider on every number of processes, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="256 rows, one and two processes, one repetition")
    quick = parser.parse_args(arguments).quick
    case = Case(256, D=16, classes=10) if quick else Case(8192)
    rows = []
    for provider in PROVIDERS:
        for processes in PROCESSES[: 2 if quick else None]:
            rows.append(measure(provider, processes, case, repetitions=1 if quick else 3))
            print(rows[-1], flush=True)
    publish("processes", HEADER, cells(rows), quick=quick)
    return rows


def measure(provider: str, processes: int, case: Case, repetitions: int) -> dict[str, Any]:
    """Measure a row of the table; memory apart, in processes that return freed memory to the system."""
    found = launch("time", provider, processes, case, repetitions)
    peaks = launch("memory", provider, processes, case, 1)
    worst = {name: max(one[name] for one in found) for name in ("products", "seconds", "loss", "gradient_error")}
    worst |= {"products": worst["products"] / (case.N**2 * case.D), "memory_mb": max(one["memory_mb"] for one in peaks)}
    return {"provider": provider, "processes": processes, **worst}


def launch(what: str, provider: str, processes: int, case: Case, repetitions: int) -> list[dict[str, Any]]:
    """Run the processes; return the result of each."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    arguments = json.dumps([what, provider, processes, port, asdict(case), repetitions])
    command = [sys.executable, __file__, "--process", arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | (MALLOC if what == "memory" else {})
    running = [
        subprocess.Popen([*command, str(rank)], stdout=PIPE, stderr=PIPE, text=True, env=env)
        for rank in range(processes)
    ]
    said = [process.communicate(timeout=LIMIT_S) for process in running]
    for process, (_, errors) in zip(running, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"{provider} on {processes} processes: {errors[-2000:]}")
    return [json.loads(output.splitlines()[-1]) for output, _ in said]


def process(arguments: str, rank: int) -> None:
    """Measure as one of the processes; print the result as JSON."""
    what, provider, number, port, fields, repetitions = json.loads(arguments)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=number)
    case = Case(**fields)
    run(make_step(provider, replace(case, N=64 * number), rank, number)[0])  # loads all that a first step loads
    step, own = make_step(provider, case, rank, number)
    if what == "memory":
        dist.barrier()
        peak = peak_extra(step, "cpu")
        found = {"memory_mb": 0.0 if peak is None else peak / MB}
    else:
        seconds = [timed(step) for _ in range(repetitions)]
        found = {"seconds": statistics.median(seconds), **counted(step), **compared(step, own, case, rank, number)}
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps(found))


def make_step(provider: str, case: Case, rank: int, number: int) -> tuple[Step, Tensor]:
    """Create a step on this process's share of the rows; return it with the share."""
    embeddings, labels = share(*case.rows(), rank, number)
    embeddings = embeddings.contiguous().requires_grad_()
    loss = make_loss(provider)
    return of_loss(lambda: loss(embeddings, labels), [embeddings]), embeddings


def share(embeddings: Tensor, labels: Tensor, rank: int, number: int) -> tuple[Tensor, Tensor]:
    """Return a process's rows of a view-major batch, again view-major, and their labels."""
    own = [part.unflatten(0, (2, -1)).chunk(number, dim=1)[rank].flatten(0, 1) for part in (embeddings, labels)]
    return own[0], own[1]


def timed(step: Step) -> float:
    """Return the seconds of a step that all processes start together."""
    dist.barrier()
    started = time.perf_counter()
    run(step)
    return time.perf_counter() - started


def counted(step: Step) -> dict[str, float]:
    """Count the multiply-adds of all matrix products of a step."""
    with profile(record_shapes=True) as profiled:
        run(step)
    total = 0
    for event in profiled.events():
        if event.name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            first = 0 if event.name == "aten::mm" else 1  # `addmm` adds its first matrix to the product of the others
            left, right = event.input_shapes[first : first + 2]
            total += left[0] * left[1] * right[1]
    return {"products": total}


def compared(step: Step, own: Tensor, case: Case, rank: int, number: int) -> dict[str, float]:
    """Compare the loss and this process's gradient with one process that has the whole batch in float64."""
    loss, (gradient,) = run(step)
    embeddings, labels = case.rows()
    whole = embeddings.double().requires_grad_()
    right = supcon_loss(whole, labels, temperature=TEMPERATURE).mean()
    (wanted,) = torch.autograd.grad(right, [whole])
    wanted = share(wanted, labels, rank, number)[0]
    error = (gradient.double() / number - wanted).abs().max() / wanted.abs().max()
    return {"loss": (loss / right).item(), "gradient_error": error.item()}


def cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the rows of the table."""
    digits = {"products": 2, "memory_mb": 1, "seconds": 2, "loss": 2}
    numbers = [[shown(row[name], n) for name, n in digits.items()] + [f"{row['gradient_error']:.0e}"] for row in rows]
    return [
        [PROVIDERS[row["provider"]], str(row["processes"]), *cells] for row, cells in zip(rows, numbers, strict=True)
    ]


if __name__ == "__main__":
    process(sys.argv[2], int(sys.argv[3])) if sys.argv[1:2] == ["--process"] else main(sys.argv[1:])
