"""Measurements in a process of their own: what the first call costs, and the host's part of a step on a GPU."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from importlib import import_module
from typing import Any

import torch
from memory import MALLOC, process_bytes, reset_peak, run
from providers import Case, Step, make_step
from records import MB
from torch.profiler import ProfilerActivity, profile

HOST_STEPS, WARM_UP_STEPS = 300, 30
#: Operators that launch nothing on a GPU; `to` does where it calls another one.
VIEWS_AND_ALLOCATIONS = """
    as_strided detach empty empty_like empty_strided expand lift_fresh narrow new_empty permute reshape resize_ select
    slice squeeze t to transpose unbind unsqueeze view view_as
"""
WITHOUT_LAUNCH = {f"aten::{name}" for name in VIEWS_AND_ALLOCATIONS.split()}


def first_two_steps(name: str, case: Case, processes: int) -> tuple[list[list[float]], list[float | None]]:
    """Return the seconds of the first two steps of some processes, and the two peaks in MB of another process.

    A peak is None where the system has no figure.
    """
    timed = [_measured("steps", name, case)[0] for _ in range(processes)]
    return timed, _measured("steps", name, case, **MALLOC)[1]  # freed blocks count as free there, but steps are slower


def host_time(name: str, case: Case) -> tuple[list[float], int]:
    """Return the host's seconds of some steps, and the number of launches of one, on the path that a GPU takes.

    The kernels are left out. What stays is Python and PyTorch, without the launchers of Triton and CUDA. A launch is a
    kernel of Triton, or an operator of PyTorch that computes (a sort counts as one).
    """
    times, (number,) = _measured("host", name, case, TRITON_INTERPRET="1")
    return times, int(number)


def _measured(what: str, name: str, case: Case, **variables: str) -> list[list[Any]]:
    """Run this file as a process; return the two lists that it prints."""
    command = [sys.executable, __file__, what, name, json.dumps(asdict(case))]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} of {name} failed: {done.stderr[-2000:]}")
    found: list[list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def steps(step: Step) -> tuple[list[float], list[float | None]]:
    """Return the seconds and the peak memory in MB (None without a figure) of the first two steps of this process.

    A step of a linear layer goes before them: what PyTorch itself loads late belongs to any model.
    """
    torch.nn.Linear(128, 128)(torch.randn(128, 128)).square().sum().backward()
    times: list[float] = []
    peaks: list[float | None] = []
    for _ in range(2):
        before = reset_peak()
        started = time.perf_counter()
        result = run(step)
        times.append(time.perf_counter() - started)
        peaks.append(None if before is None else (process_bytes("VmHWM") - before) / MB)
        del result
    return times, peaks


def host(step: Step) -> list[list[float]]:
    """Return the seconds of steps whose kernels do nothing, and the number of launches of a step."""
    interpreter: Any = import_module("triton.runtime.interpreter")
    launched: list[Any] = []
    interpreter.InterpretedFunction.run = lambda kernel, *_, **__: launched.append(kernel)
    times = []
    for _ in range(WARM_UP_STEPS + HOST_STEPS):
        started = time.perf_counter()
        run(step)
        times.append(time.perf_counter() - started)
    launched.clear()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run(step)
    operators = [e for e in profiled.events() or () if e.name.startswith("aten::") and not within_operator(e)]
    return [times[WARM_UP_STEPS:], [len(launched) + sum(map(launches, operators))]]


def within_operator(event: Any) -> bool:
    """Return True if an operator of PyTorch called this one."""
    parent = event.cpu_parent
    return parent is not None and (parent.name.startswith("aten::") or within_operator(parent))


def launches(event: Any) -> bool:
    """Return True if an operator, or one that it calls, computes."""
    return event.name not in WITHOUT_LAUNCH or any(map(launches, event.cpu_children))


if __name__ == "__main__":
    step = make_step(sys.argv[2], Case(**json.loads(sys.argv[3])))
    print(json.dumps({"steps": steps, "host": host}[sys.argv[1]](step)))
