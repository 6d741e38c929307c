"""Peak memory of one step, measured apart from its time in a fresh process for each provider and case.

On Linux the kernel records the peak resident size of each process (`VmHWM`), and resets it when 5 is written to
`/proc/self/clear_refs`: nothing is sampled and no peak is missed. On CUDA the caching allocator counts.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from limits import bounded_memory, over, process_bytes, status_of, time_limit
from providers import Case, Step, make_step
from records import MB, OK

#: glibc keeps freed blocks and serves ever larger ones from its heap: a step could reuse blocks of the set-up, which
#: would hide its memory. With these variables each larger block is a mapping of its own and is returned when freed: the
#: resident memory is the memory in use. They slow a step down, so that time is measured without them.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}
WARM_UP_ROWS = 256


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
            small = case if name.startswith("dense/") else replace(case, N=min(case.N, WARM_UP_ROWS))
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
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = process_bytes("VmRSS")
    except OSError:
        run(step)
        return None
    run(step)
    return max(0, process_bytes("VmHWM") - before)


def run(step: Step) -> None:
    """Run forward, and backward if there is one; hold the loss and the gradients to the end, as in training."""
    loss = step.forward()
    _gradients = step.backward(loss) if step.backward else None


if __name__ == "__main__":
    print(json.dumps(probed(sys.argv[1], Case(**json.loads(sys.argv[2])), float(sys.argv[3]))))
