"""Peak memory of one step, apart from its time: a fresh process for each provider and case.

On Linux the kernel keeps each process's highest resident size (`VmHWM`) and sets it back on request (5 written to
`/proc/self/clear_refs`), so that nothing is sampled and no peak is missed. On CUDA the caching allocator counts.
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

#: glibc keeps freed blocks for later, and learns to serve ever larger ones from its heap: a step could reuse what the
#: setting-up left behind, and its memory would not show. With these, each larger block is a mapping of its own,
#: returned when freed: what is resident is what is in use. They slow a step down, hence apart from time.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}
WARM_UP_ROWS = 256


class Peak(NamedTuple):
    """What a step took above its inputs, in MB; None where it failed or the system does not tell."""

    status: str
    extra_mb: float | None


def probe(name: str, case: Case, *, limit_s: float) -> Peak:
    """The peak of a provider's step, run in a process of its own; never raises for what happens there."""
    command = [sys.executable, __file__, name, json.dumps(asdict(case)), str(limit_s)]
    environment = os.environ | MALLOC
    try:  # the process watches the time itself, but a single long operation keeps it from doing so
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
    """What `probe` runs in its process: set up, touch all that a first step loads, then measure one step."""
    try:
        with bounded_memory(case.device), time_limit(limit_s):
            # A compiled step is compiled for its shape; the others load all they need on a small one.
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
    """Bytes that one step takes above what is in use before it; None where the system does not tell."""
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
    """Forward, and backward where there is one; the loss and the gradients are held to the end, as in training."""
    loss = step.forward()
    _gradients = step.backward(loss) if step.backward else None


if __name__ == "__main__":
    print(json.dumps(probed(sys.argv[1], Case(**json.loads(sys.argv[2])), float(sys.argv[3]))))
