"""The benchmarks' memory: a known allocation, a fresh process, the limit, and the status of failures."""

import subprocess
from pathlib import Path

import memory
import pytest
import torch
from helpers.peak_memory import measured
from memory import Peak
from providers import Case

MB = 10**6
CASE = Case(64, D=8, classes=5)


def test_memory_limit_makes_an_allocation_above_it_fail(monkeypatch):
    available = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    monkeypatch.setattr(memory, "SHARE_OF_MEMORY", 256 * MB / available)
    with memory.bounded_memory("cpu"), pytest.raises(RuntimeError) as caught:
        torch.empty(512 * MB, dtype=torch.uint8)  # never touched: only the bound refuses it
    assert memory.status_of(caught.value) == "out of memory"
    torch.empty(512 * MB, dtype=torch.uint8)  # the bound is gone again


KNOWN_ALLOCATIONS = """
import torch, memory
from providers import Step
MB = 10**6
def holding(mb):
    return Step(lambda: torch.ones(mb * MB // 4).sum(), None)
memory.run(holding(1))
peaks = [memory.peak_extra(holding(mb), "cpu") / MB for mb in (64, 16, 200, 16)]
torch.ones(30 * MB // 4).sum()  # in the set-up: freed before the step
held = Step(lambda: torch.ones(20 * MB // 4), lambda _: torch.ones(40 * MB // 4))  # 20 MB kept for the backward pass
print([*peaks, memory.peak_extra(held, "cpu") / MB])
"""


def test_peak_of_a_known_allocation():
    *peaks, held = measured(KNOWN_ALLOCATIONS)
    assert peaks == pytest.approx([64, 16, 200, 16], abs=1)  # the peak is reset before each
    assert held == pytest.approx(60, abs=1)


@pytest.mark.slow
def test_probe_runs_a_step_apart():
    half, whole = (memory.probe("pml", Case(N), limit_s=600) for N in (512, 1024))
    assert half.status == whole.status == "ok"
    assert 3 < whole.extra_mb / half.extra_mb < 5  # index lists and matrices: quadratic in N


def test_probe_reports_failures_and_never_raises(monkeypatch):
    assert memory.probed("nobody", CASE, 60) == Peak("failed: KeyError: 'nobody'", None)
    assert memory.probed("lightly", CASE, 60) == Peak("skipped: lightly's NT-Xent takes no labels", None)
    assert memory.status_of(torch.OutOfMemoryError("CUDA")) == "out of memory"
    assert memory.status_of(ValueError("one\nmore")) == "failed: ValueError: one"

    def killed(*_, **__):
        return subprocess.CompletedProcess([], killed.code, "", killed.stderr)

    monkeypatch.setattr(memory.subprocess, "run", killed)
    for killed.code, killed.stderr, status in (
        (-9, "", "out of memory"),
        (-6, "terminate called\n  what():  std::bad_alloc\n", "out of memory"),
        (1, "Traceback\nImportError: gone\n", "failed: ImportError: gone"),
        (3, "", "failed: exit status 3"),
    ):
        assert memory.probe("pml", CASE, limit_s=1) == Peak(status, None)

    def hangs(*_, **__):
        raise subprocess.TimeoutExpired("x", 61)

    monkeypatch.setattr(memory.subprocess, "run", hangs)
    assert memory.probe("pml", CASE, limit_s=1) == Peak("over 1 s", None)
