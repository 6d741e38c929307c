"""Limits on the time and memory of a measurement, and the status of a record when one is exceeded."""

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from providers import SkippedError

SHARE_OF_MEMORY = 0.8  # of what is free: beyond it an allocation fails, before the machine kills processes


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a block that takes longer, at the next Python instruction; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(over(seconds))

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def bounded_memory(device: str) -> Iterator[None]:
    """Bound the memory of this process, so that an allocation fails before the machine runs out of memory.

    On CUDA the allocator fails by itself.
    """
    try:
        available = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
        used = process_bytes("VmData")
    except (OSError, IndexError):
        available, used = 0, 0
    if device == "cuda" or not available:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = used + int(SHARE_OF_MEMORY * available)
    resource.setrlimit(resource.RLIMIT_DATA, (bound if soft == resource.RLIM_INFINITY else min(bound, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def process_bytes(field: str) -> int:
    """Return a size from `/proc/self/status` in bytes; raise OSError where the system has none."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def over(seconds: float) -> str:
    """Return the status of a step that exceeded the time limit."""
    return f"over {seconds:g} s"


def status_of(error: Exception) -> str:
    """Return the status of a step that raised."""
    if isinstance(error, SkippedError):
        return f"skipped: {error}"
    if isinstance(error, TimeoutError):
        return str(error)
    allocation = ("can't allocate memory", "not enough memory", "out of memory")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in allocation):
        return "out of memory"
    first = (str(error).strip().splitlines() or [""])[0]
    return f"failed: {type(error).__name__}: {first[:200]}"
