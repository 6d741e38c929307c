"""The benchmarks' memory: a known allocation, a process of its own, the bound, and what is said of failures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import limits
import memory
import providers
from memory import Peak
from providers import Case, Step

MB = 10**6
CASE = Case(64, D=8, classes=5)


def test_memory_limit_makes_an_allocation_fail_that_the_machine_could_not_hold(monkeypatch):
    monkeypatch.setattr(limits, "SHARE_OF_MEMORY", 0.05)
    half = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024 // 2
    with limits.bounded_memory("cpu"), pytest.raises(RuntimeError) as caught:
        torch.empty(half, dtype=torch.uint8)  # never touched: only the bound refuses it
    assert limits.status_of(caught.value) == "out of memory"
    torch.empty(half, dtype=torch.uint8)  # the bound is gone again


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (providers.SkippedError("not here"), "skipped: not here"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA"), "out of memory"),
        (ValueError("backend='x' cannot\nmore"), "failed: ValueError: backend='x' cannot"),
        (RuntimeError(""), "failed: RuntimeError: "),
    ],
)
def test_status_says_what_happened(error, status):
    assert limits.status_of(error) == status


def holding(mb):
    return Step(lambda: torch.ones(int(mb * MB / 4)).sum(), None)


def test_peak_of_a_known_allocation():
    # in a process of its own, as the harness has it: this one holds freed blocks of the tests before
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from test_memory import *\n"
        "memory.run(holding(1))\n"
        "print([memory.peak_extra(holding(mb), 'cpu') / MB for mb in (64, 16, 200, 16)])\n"
        "print(memory.peak_extra(make_held(), 'cpu') / MB)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=memory.os.environ | memory.MALLOC, capture_output=True)
    peaks, held = map(json.loads, done.stdout.splitlines())
    assert peaks == pytest.approx([64, 16, 200, 16], abs=1)  # each its own: the peak is set back
    assert held == pytest.approx(60, abs=1)  # what the forward pass keeps counts in the backward pass


def make_held():
    """Keeps 20 MB to the backward pass, which takes 40 MB more; 30 MB in the set-up are gone by then."""
    torch.ones(30 * MB // 4).sum()
    return Step(lambda: torch.ones(20 * MB // 4), lambda _: torch.ones(40 * MB // 4))


def test_probe_runs_a_step_apart():
    N = 1024
    peak = memory.probe("pml", Case(N), limit_s=60)
    assert peak.status == "ok"
    assert 40 < peak.extra_mb * MB / N**2 < 60  # bytes for each pair: index lists and matrices


def test_probe_reports_failures_and_never_raises(monkeypatch):
    assert memory.probed("nobody", CASE, 60) == Peak("failed: KeyError: 'nobody'", None)
    status, extra = memory.probed("lightly", CASE, 60)
    assert (status, extra) == ("skipped: lightly's NT-Xent takes no labels", None)

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
