"""Peak memory of one step, measured apart from its time in a fresh process; limits on the time and memory of a step.

On Linux the kernel records the peak resident size of each process (`VmHWM`), and resets it when 5 is written to
`/proc/self/clear_refs`: nothing is sampled and no peak is missed. On CUDA the caching allocator counts.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from providers import Case, SkippedError, Step, make_step
from records import MB, OK
from torch import Tensor

#: glibc keeps freed blocks and serves ever larger ones from its heap: a step could reuse blocks of the set-up, which
#: would hide its memory. With these variables each larger block is a separate mapping and is returned when freed: the
#: resident memory is the memory in use. They slow a step down, so that time is measured without them.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}
WARM_UP_ROWS = 4096  # enough for the path of large batches
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
    return f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


class Peak(NamedTuple):
    """The peak memory of a step above its inputs in MB; None where it failed or the system has no figure."""

    status: str
    extra_mb: float | None


def probe(name: str, case: Case, *, limit_s: float) -> Peak:
    """Return the peak of a provider's step from a separate process; never raise for an error there."""
    command = [sys.executable, __file__, name, json.dumps(asdict(case)), str(limit_s)]
    environment = os.environ | MALLOC
    try:  # the process limits its time itself, but cannot interrupt a single long operation
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s + 60)
    except subprocess.TimeoutExpired:
        return Peak(over(limit_s), None)
    if done.returncode == 0:
        return Peak(*json.loads(done.stdout.splitlines()[-1]))
    if done.returncode == -9 or "bad_alloc" in done.stderr:
        return Peak("out of memory", None)
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return Peak(f"failed: {lines[-1][:200]}", None)


def probed(name: str, case: Case, limit_s: float) -> Peak:
    """Warm up, then measure one step: the work of the process of `probe`."""
    try:
        with bounded_memory(case.device), time_limit(limit_s):
            # A compiled step needs its own shape to warm up; for the others a small one is enough.
            small = case if name == "dense/compiled" else replace(case, N=min(case.N, WARM_UP_ROWS))
            run(make_step(name, small))
            step = make_step(name, case)
            if small == case:
                run(step)
            extra = peak_extra(step, case.device)
    except Exception as error:
        return Peak(status_of(error), None)
    return Peak(OK, None if extra is None else extra / MB)


def peak_extra(step: Step, device: str) -> int | None:
    """Return the bytes of one step above the memory in use before it; None where the system has no figure."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(step)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    used = reset_peak()
    run(step)
    return None if used is None else max(0, process_bytes("VmHWM") - used)


def reset_peak() -> int | None:
    """Reset the peak of this process; return its bytes in use, None where the system has no figure."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return process_bytes("VmRSS")
    except OSError:
        return None


def run(step: Step) -> tuple[Tensor, Any]:
    """Run forward, and backward if there is one; return the loss and the gradients, which a training step holds too."""
    loss = step.forward()
    return loss, step.backward(loss) if step.backward else None


if __name__ == "__main__":
    print(json.dumps(probed(sys.argv[1], Case(**json.loads(sys.argv[2])), float(sys.argv[3]))))
