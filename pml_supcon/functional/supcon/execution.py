"""Precision and threads of the PyTorch backends.

PyTorch splits every operation over its threads and waits for all of them after each. A tile takes many short
operations: if a core is busy with something else (a data loader's worker), every operation waits for it. So each
thread processes whole tiles with single-threaded operations, and the threads synchronise once.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from pml_supcon.functional.supcon.problem import Problem
from pml_supcon.targets import NO_WEIGHT

#: Up to this `|s|` the values `exp(s)` and their sums stay well inside float32 and float64 without a shift.
SAFE_EXPONENT = {torch.float32: 60.0, torch.float64: 500.0}
#: The weights of a target are at least ``exp(-WEIGHT_EXPONENT)``, or 0.
WEIGHT_EXPONENT = -math.log(NO_WEIGHT)
#: The devices with autocast, for the compiler.
_AUTOCAST = frozenset(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "mps", "xpu", "hpu", "xla")))


def needs_shift(problem: Problem) -> bool:
    """Return True if ``exp(s)`` could leave the range of the dtype, so that sums need logarithms; True if unknown.

    L_in with a target sums ``w exp(s)``, with weights that can be small.
    """
    weighted = problem.target is not None and problem.summation == "in"
    return not problem.bound + weighted * WEIGHT_EXPONENT <= SAFE_EXPONENT[problem.dtype]


def scale_by_sqrt_temperature(rows: Tensor, temperature: float) -> Tensor:
    """Return rows ``(N, D)`` divided by ``sqrt(tau)``: products of two of them are similarities ``s_ij``."""
    scaled: Tensor = rows * temperature**-0.5
    return scaled


class _Float32Products:
    """A context in which products of float32 rows use neither TF32 nor bfloat16, as PyTorch lets its users choose.

    PyTorch has one setting for all threads: the first thread that enters changes it, the last that leaves restores it.
    From PyTorch 2.9 on each device has a setting, beside the old one for all, and operations fail where the two differ.
    """

    LOWER = frozenset({"tf32", "bf16", "high", "medium"})

    def __init__(self) -> None:
        devices: dict[str, Any] = {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}
        matmuls: dict[str, Any] = {device: getattr(each, "matmul", None) for device, each in devices.items()}
        self.matmuls = matmuls if all(hasattr(each, "fp32_precision") for each in matmuls.values()) else {}
        self.lock = threading.Lock()
        self.inside = 0
        self.users: tuple[str, dict[str, str]] = "", {}  # the settings to restore: the old one, and by device

    def needed(self, device: str) -> bool:
        """Return True if the user lets products on a type of device be of a lower precision."""
        if device not in ("cpu", "cuda"):
            return False
        with self.lock:
            return self.inside > 0 or (self.of(device) if self.matmuls else self.old()) in self.LOWER

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.users = self.old(), {device: self.of(device) for device in self.matmuls}
                if self.users[0] in self.LOWER:
                    torch.set_float32_matmul_precision("highest")
                self.write({device: "ieee" for device in self.matmuls if self.of(device) in self.LOWER})
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                if self.users[0] in self.LOWER:
                    torch.set_float32_matmul_precision(self.users[0])
                self.write({device: users for device, users in self.users[1].items() if self.of(device) != users})

    def old(self) -> str:
        """Return the setting for all devices; "differs" if a device has another, which PyTorch reports as an error."""
        try:
            return str(torch.get_float32_matmul_precision())
        except RuntimeError:
            return "differs"

    def of(self, device: str) -> str:
        """Return the setting of a device."""
        return str(self.matmuls[device].fp32_precision)

    def write(self, settings: dict[str, str]) -> None:
        """Change the settings of some devices."""
        for device, precision in settings.items():
            self.matmuls[device].fp32_precision = precision


_FLOAT32_PRODUCTS = _Float32Products()
_NOTHING = nullcontext()


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context without autocast, and without TF32 and bfloat16 in products of float32 rows.

    Under ``torch.compile`` only autocast is off: the compiler cannot change the setting of products.
    """
    kind = device.type
    if torch.compiler.is_compiling():
        # Dynamo of PyTorch 2.7 to 2.10 cannot trace `is_autocast_available`.
        return torch.autocast(kind, enabled=False) if kind in _AUTOCAST else _NOTHING
    enabled = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    autocast = torch.autocast(kind, enabled=False) if enabled else _NOTHING
    return _both(autocast, _FLOAT32_PRODUCTS) if _FLOAT32_PRODUCTS.needed(kind) else autocast


@contextmanager
def _both(outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> Iterator[None]:
    with outer, inner:
        yield


def products(anchors: Tensor, rows: Tensor) -> Tensor:
    """Return ``anchors @ rows.mT``, ``(..., N, M)``, in full precision, differentiable any number of times."""
    if torch.compiler.is_compiling():  # the compiler derives the backward pass itself, and supports no `jvp`
        return anchors @ rows.mT
    dots: Tensor = _Products.apply(anchors, rows)
    return dots


class _Products(torch.autograd.Function):
    """The product ``a @ b.mT`` whose backward also ignores autocast; PyTorch's would use the state at backward time."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with full_precision(a.device):
            return a @ b.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        # of y = a b^T: dL/da = U b and dL/db = U^T a, both products again without autocast
        a, b = ctx.saved_tensors
        of_a = products(upstream, b.mT) if ctx.needs_input_grad[0] else None
        return of_a, products(upstream.mT, a.mT) if ctx.needs_input_grad[1] else None

    @staticmethod
    def jvp(ctx: Any, tangent_a: Tensor | None, tangent_b: Tensor | None) -> Tensor:
        # dy = da b^T + a db^T
        a, b = ctx.saved_tensors
        terms = ((tangent_a, b), (a, tangent_b))
        parts = [products(x, y) for x, y in terms if x is not None and y is not None]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_THREADS = 8  # each has buffers of its own; with more threads, the operations of one use several
MIN_ITEMS = 8  # with fewer a thread, PyTorch's threads, which spin for milliseconds after an operation, slow ours
STARTING = threading.Lock()


def map_in_threads(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], device: torch.device
) -> list[Result]:
    """Return ``work(part)`` for parts of the items, in a fixed order; one part if threads would not save time.

    The parts depend only on the number of items and on ``torch.get_num_threads()``, so that sums over the results are
    bit-identical between runs.
    """
    if device.type != "cpu":
        return [work(items)]
    with STARTING:  # a new thread reads the default number of threads at first use; `pool` changes it briefly
        threads = torch.get_num_threads()
        workers = min(threads, MAX_THREADS)
        alone = workers == 1 or len(items) < MIN_ITEMS * workers
        executor = None if alone else pool(os.getpid(), threads)
    if executor is None:
        return [work(items)]

    def without_graph(part: Sequence[Item]) -> Result:
        with torch.no_grad():  # the grad mode of the calling thread does not carry over
            return work(part)

    return list(executor.map(without_graph, [items[i::workers] for i in range(workers)]))


@lru_cache(maxsize=1)
def pool(_process: int, threads: int) -> ThreadPoolExecutor:
    """Return the thread pool of this process; a forked process creates its own.

    A process must be forked before the first multi-threaded operation: later, PyTorch's own threads are missing in the
    fork, and any operation can hang.
    """
    workers = min(threads, MAX_THREADS)
    ready = threading.Barrier(workers + 1)

    def set_up() -> None:
        torch.get_num_threads()  # reads the default now; read later, it would overwrite the number set below
        torch.set_num_threads(threads // workers)
        ready.wait()

    executor = ThreadPoolExecutor(workers, thread_name_prefix="pml_supcon", initializer=set_up)
    for _ in range(workers):
        executor.submit(ready.wait)  # one task for each thread, so that all start
    ready.wait()
    torch.set_num_threads(threads)  # the workers' number became the default of new threads: restore it
    ready.wait()
    return executor
