"""The benchmarks' fresh processes: what the first call of a process costs, and the host's part of a step on a GPU."""

import fresh_process
import pytest
import torch
from helpers.peak_memory import measured
from providers import Case
from torch.profiler import ProfilerActivity, profile

CASE = Case(64, D=8, classes=5)


ALLOCATIONS = """
import fresh_process, json, torch
from providers import Step
kept = []
def forward():
    if not kept:
        kept.append(torch.ones(100_000_000 // 4))
    return torch.ones(10_000_000 // 4)
print(json.dumps(fresh_process.steps(Step(forward, None))))
"""


def test_the_first_step_has_what_it_alone_allocates():
    times, peaks = measured(ALLOCATIONS)
    assert len(times) == 2
    assert peaks[0] - peaks[1] == pytest.approx(100, abs=2)


@pytest.mark.slow
def test_processes_return_the_first_two_steps():
    times, peaks = fresh_process.first_two_steps("pml", CASE, 2)
    assert [len(each) for each in times] == [2, 2]
    assert all(first > second > 0 for first, second in times)  # the first one loads what PyTorch loads late
    assert peaks[0] > peaks[1] >= 0


def test_operators_that_compute_count_as_launches():
    rows = torch.ones(4, 3)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        rows.t()[:2].unsqueeze(0).to(torch.float32)  # views, and a copy that is none
        torch.empty(3)
        rows.to(torch.float64)
        torch.sort(rows)  # one, although it calls others
        (rows + rows).sum()
    events = [e for e in profiled.events() if e.name.startswith("aten::") and not fresh_process.within_operator(e)]
    counted = [event.name for event in events if fresh_process.launches(event)]
    assert counted == ["aten::to", "aten::sort", "aten::add", "aten::sum"]


@pytest.mark.slow
def test_the_host_launches_kernels_and_operators():
    pytest.importorskip("triton")
    times, launches = fresh_process.host_time("pml_supcon/triton", CASE)
    assert len(times) == fresh_process.HOST_STEPS
    assert min(times) > 0
    assert 3 < launches < 100
    with pytest.raises(RuntimeError, match=r"host of nobody failed: [\s\S]*KeyError: 'nobody'"):
        fresh_process.host_time("nobody", CASE)
