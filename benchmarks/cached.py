"""Compare a step in chunks (cached gradients) with a step of the whole batch: gradient, memory and time.

    python benchmarks/cached.py [--quick]

6,144 images of two views, 3 x 16 x 16, in chunks of 64 through a small convolutional network with GroupNorm and
dropout; then the loss over all 12,288 rows, forward and backward; in one process, and in two (gloo) that share the
batch and its loss. Memory is measured in fresh processes (of two, the larger figure); time is the median of steps in
turns. The error of a gradient is its distance from the float64 gradient of the whole batch, relative to the norm of
the latter. In float32 both round; the whole batch has longer sums and rounds more. Takes about four minutes on two
cores.

Ordinary dropout draws its masks in the order of its calls, so that a whole batch and its chunks have different masks.
Here a mask is a function of the row's number, which is the fourth channel of the input: both steps then have the same
gradient up to rounding.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from harness import time_step
from memory import MALLOC, peak_extra, run
from providers import Step
from records import MB
from tables import publish, ratio, shown
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pml_supcon.losses import GlobalBatchLoss, SupConLossOut
from pml_supcon.models import ChunkedEncoder

WAYS = ("whole", "chunks")
VIEWS, SIDE, CLASSES = 2, 16, 100
ERROR = "error of the gradient"


class Sizes(NamedTuple):
    """Images of a step and of a chunk, the width of the network, and the number of timed steps."""

    images: int = 6144
    chunk: int = 64
    width: int = 8
    steps: int = 3


QUICK = Sizes(images=96, chunk=16, width=4, steps=1)


class RowDropout(nn.Module):
    """Dropout whose mask is a function of the row's number and the channel, not of the order of calls."""

    def __init__(self, p: float, salt: int) -> None:
        super().__init__()
        self.p, self.salt = p, salt

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        """Drop channels of `x` (N, C, ...) for rows with the numbers `rows` (N,)."""
        if not self.training:
            return x
        mixed = rows[:, None] * 0x9E3779B1 + torch.arange(x.shape[1]) * 0x85EBCA6B + self.salt * 0xC2B2AE35
        for shift in (15, 13, 16):  # a multiplicative hash of 32 bits
            mixed = mixed & 0xFFFFFFFF
            mixed = (mixed ^ (mixed >> shift)) * 0x2C1B3C6D
        kept = (mixed & 0xFFFFFF) >= self.p * 2**24
        return x * (kept.to(x.dtype) / (1 - self.p)).view(*kept.shape, *[1] * (x.ndim - 2))


class Network(nn.Module):
    """Images with views (B, V, 4, H, W), the fourth channel the image's number, to embeddings (B, V, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.GroupNorm(4, b), nn.GELU())
            for a, b, stride in zip(widths[:-1], widths[1:], (1, 2, 2), strict=True)
        )
        self.drops = nn.ModuleList(RowDropout(0.2, salt) for salt in range(3))
        self.head = nn.Linear(4 * width, 64)

    def forward(self, images: Tensor) -> Tensor:
        """Encode all views of an image together."""
        rows = images[:, :, 3, 0, 0].long() * VIEWS + torch.arange(VIEWS)
        x, rows = images[:, :, :3].flatten(0, 1), rows.flatten()
        for block, drop in zip(self.blocks, self.drops, strict=True):
            x = drop(block(x), rows)
        return self.head(x.mean((2, 3))).unflatten(0, images.shape[:2])  # type: ignore[no-any-return]


def batch(sizes: Sizes, own: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Return images (B, V, 4, H, W) and labels (B,) of a process; the views of a class resemble each other."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(sizes.images) % CLASSES
    centres = torch.randn(CLASSES, 1, 3, SIDE, SIDE, generator=generator)
    numbers = torch.arange(sizes.images, dtype=torch.float32)[own].view(-1, 1, 1, 1, 1)
    noise = torch.randn(sizes.images, VIEWS, 3, SIDE, SIDE, generator=generator)[own]
    images = torch.cat([centres[labels[own]] + noise, numbers.expand(-1, VIEWS, 1, SIDE, SIDE)], dim=2)
    return images, labels[own]


class Training:
    """A model and its loss on the batch, whole or in chunks; in one process (`rank` None), or as one of two."""

    def __init__(self, way: str, sizes: Sizes, rank: int | None, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(1)
        self.model: nn.Module = Network(sizes.width).to(dtype)
        loss = SupConLossOut()
        self.loss: Callable[[Tensor, Tensor], Tensor] = loss if rank is None else GlobalBatchLoss(loss)
        self.reductions = 0
        images, self.labels = batch(sizes, slice(None) if rank is None else slice(rank, None, 2))
        self.images = images.to(dtype)
        if way == "chunks":
            self.model = ChunkedEncoder(self.model, sizes.chunk)
        if rank is not None:
            parallel = self.model = DistributedDataParallel(self.model)
            parallel.register_comm_hook(None, self._reduce)
        self.step = Step(self._forward, Tensor.backward)

    def _forward(self) -> Tensor:
        self.model.zero_grad(set_to_none=True)
        return self.loss(self.model(self.images), self.labels)

    def _reduce(self, _: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        self.reductions += 1
        work = dist.all_reduce(bucket.buffer().div_(2), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    def gradient(self) -> Tensor:
        """Return the last step's gradient of all parameters as one vector."""
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None]).double()


class Found(NamedTuple):
    """The result of one way: seconds of a step, its gradient, and the number of gradient reductions in it."""

    seconds: float
    gradient: Tensor
    reductions: int


def measured(sizes: Sizes, rank: int | None = None) -> dict[str, Found]:
    """Time steps of both ways in turns."""
    trainings = {way: Training(way, sizes, rank) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for done in range(sizes.steps + 1):
        for way in WAYS if done % 2 else WAYS[::-1]:
            trainings[way].reductions = 0
            seconds = sum(part or 0 for part in time_step(trainings[way].step, "cpu"))
            if done:  # the first warms up
                times[way].append(seconds)
    return {way: Found(median(times[way]), t.gradient(), t.reductions) for way, t in trainings.items()}


def peak(way: str, sizes: Sizes, rank: int | None = None) -> float | None:
    """Return the MB of a step above the memory in use before it."""
    run(Training(way, QUICK, rank).step)  # loads all that a first step loads
    extra = peak_extra(Training(way, sizes, rank).step, "cpu")
    return None if extra is None else extra / MB


def one_of_two(rank: int, task: Callable[[Sizes, int], Any], sizes: Sizes, folder: str) -> None:
    """Run a task as one of two processes with one thread each; write its result into the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(task(sizes, rank), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def by_two(task: Callable[[Sizes, int], Any], sizes: Sizes) -> list[Any]:
    """Run a task on two processes; return both results."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(one_of_two, args=(task, sizes, folder), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(2)]


def probe(way: str, sizes: Sizes, processes: int) -> float | None:
    """Return the peak of a step in fresh processes (see `memory.MALLOC`), of two the larger."""
    asked = json.dumps([way, sizes, processes])
    command = [sys.executable, str(Path(__file__)), "--probe", asked]
    done = subprocess.run(command, env=os.environ | MALLOC, stdout=subprocess.PIPE, text=True, check=True)
    extras = json.loads(done.stdout.splitlines()[-1])
    return None if None in extras else max(extras)


def probed(asked: str) -> str:
    """Measure the peak, as JSON: the work of the process of `probe`."""
    way, sizes, processes = json.loads(asked)
    task = partial(peak, way)
    return json.dumps([task(Sizes(*sizes))] if processes == 1 else by_two(task, Sizes(*sizes)))


class Line(NamedTuple):
    """A row of the table: the figures of the whole batch and of the chunks, and the aim."""

    what: str
    whole: float | None
    chunks: float | None
    aim: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return the row as text."""
        values = (self.whole, self.chunks)
        texts = [f"{v:.1e}" if ERROR in self.what and v is not None else shown(v) for v in values]
        return self.what, *texts, shown(ratio(self.chunks, self.whole)), self.aim


def lines(sizes: Sizes, processes: int, exact: Tensor) -> Iterator[Line]:
    """Yield the rows of one or two processes; `exact` is the reference gradient."""
    where = "one process" if processes == 1 else "two processes"
    extra = {way: probe(way, sizes, processes) for way in WAYS}
    found = [measured(sizes)] if processes == 1 else by_two(measured, sizes)

    def line(what: str, figure: Callable[[Found], float], aim: str) -> Line:
        worst = {way: max(figure(each[way]) for each in found) for way in WAYS}
        return Line(f"{where}: {what}", worst["whole"], worst["chunks"], aim)

    yield Line(f"{where}: extra memory, MB", extra["whole"], extra["chunks"])
    yield line("seconds of a step", lambda one: one.seconds, "at most 1.5 x")
    yield line(f"{ERROR}, float32", lambda one: error(one.gradient, exact), "at most 1e-6")
    if processes == 2:
        yield line("reductions of the gradient in a step", lambda one: one.reductions, "1")


def double_gradient(way: str, sizes: Sizes) -> Tensor:
    """Return the gradient in float64 in one process."""
    training = Training(way, sizes, None, torch.float64)
    run(training.step)
    return training.gradient()


def error(came: Tensor, exact: Tensor) -> float:
    """Return the distance of a gradient from the exact one, relative to the norm of the latter."""
    return float((came - exact).norm() / exact.norm())


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    """Measure both ways in one process and in two, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one repetition, only to try the script")
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.probe is not None:
        print(probed(asked.probe))
        return []
    sizes = QUICK if asked.quick else Sizes()
    exact = double_gradient("whole", sizes)
    made = [Line(f"one process: {ERROR}, float64", 0.0, error(double_gradient("chunks", sizes), exact), "at most 1e-6")]
    for processes in (1, 2):
        made += lines(sizes, processes, exact)
    header = ["", "whole batch", f"chunks of {sizes.chunk}", "chunks over whole", "aim for chunks"]
    publish("cached", header, [line.cells() for line in made], quick=asked.quick)
    return made


if __name__ == "__main__":
    main()
