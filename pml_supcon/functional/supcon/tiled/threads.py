"""Threads that each work through tiles of their own, for the CPU.

PyTorch spreads every operation over its threads and waits for all of them after each. A tile is many short operations:
where a core is busy with something else (a loader's worker), all of them wait each time. Here each thread takes whole
tiles with operations on one thread, and they meet once.
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

MAX_THREADS = 8  # each keeps sums of its own; beyond it their operations take several threads each
MIN_ITEMS = 4  # for each worker, to be worth their meeting
STARTING = threading.Lock()


def map_in_threads(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], device: torch.device
) -> list[Result]:
    """What `work` makes of parts of the items, in a fixed order; in one part where threads would not pay.

    Which item is in which part depends on their number and on `torch.get_num_threads()` alone, so that sums over the
    results can be repeated to the last bit.
    """
    if device.type != "cpu":
        return [work(items)]
    with STARTING:  # a thread takes the default number at its first look, which `pool` changes for a moment
        threads = torch.get_num_threads()
        workers = min(threads, MAX_THREADS)
        alone = workers == 1 or len(items) < MIN_ITEMS * workers
        executor = None if alone else pool(os.getpid(), threads)
    if executor is None:
        return [work(items)]

    def without_graph(part: Sequence[Item]) -> Result:
        with torch.no_grad():  # the mode of the calling thread does not come along
            return work(part)

    return list(executor.map(without_graph, [items[i::workers] for i in range(workers)]))


@lru_cache(maxsize=1)
def pool(process: int, threads: int) -> ThreadPoolExecutor:
    """The workers of this process, whose operations share its threads; a forked process makes its own.

    That serves processes forked before the first operation on several threads. After one, PyTorch's own threads are
    missing in the fork, and any of its operations can hang there.
    """
    del process
    workers = min(threads, MAX_THREADS)
    ready = threading.Barrier(workers + 1)

    def set_up() -> None:
        torch.get_num_threads()  # a thread takes the default at its first look, and would later, over what is set
        torch.set_num_threads(threads // workers)
        ready.wait()

    executor = ThreadPoolExecutor(workers, thread_name_prefix="pml_supcon", initializer=set_up)
    for _ in range(workers):
        executor.submit(ready.wait)  # one for each, so that all are started
    ready.wait()
    torch.set_num_threads(threads)  # the workers' number is also the default of threads to come: put it back
    ready.wait()
    return executor
