"""Threads that each process whole tiles, for the CPU.

PyTorch splits every operation over its threads and waits for all of them after each. A tile takes many short
operations: if a core is busy with something else (a data loader's worker), every operation waits for it. Here each
thread processes whole tiles with single-threaded operations, and the threads synchronise once.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_THREADS = 8  # each has buffers of its own; with more threads, the operations of one use several
MIN_ITEMS = 4  # fewer items per thread cost more in synchronisation than they save
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
