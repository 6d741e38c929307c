"""Limits on the time and memory of what is measured, and what a record says when one is reached."""

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
    """Raise TimeoutError in the block when it takes longer, as soon as Python gets a turn; in the main thread only."""
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
    """Let allocations fail before the machine runs out of memory. On CUDA the allocator does so by itself."""
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
    """A size from `/proc/self/status`, in bytes; OSError where the system does not tell."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def over(seconds: float) -> str:
    """The status of what took longer."""
    return f"over {seconds:g} s"


def status_of(error: Exception) -> str:
    """The status of a step that raised."""
    if isinstance(error, SkippedError):
        return f"skipped: {error}"
    if isinstance(error, TimeoutError):
        return str(error)
    allocation = ("can't allocate memory", "not enough memory", "out of memory")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in allocation):
        return "out of memory"
    first = (str(error).strip().splitlines() or [""])[0]
    return f"failed: {type(error).__name__}: {first[:200]}"
