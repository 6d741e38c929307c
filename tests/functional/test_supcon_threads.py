"""Tiles divided over threads: the same numbers, repeatable, without a change of torch's number of threads."""

import threading

import pytest
import torch
from helpers.supcon_batches import OPTIONS, loss_and_gradient, random_rows

from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon import execution
from pml_supcon.functional.supcon.tiled import layout
from pml_supcon.targets import LabelSets, SoftLabels


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(layout, "TILE", 7)
    monkeypatch.setattr(layout, "STRIP", 3)
    yield
    execution.pool.cache_clear()
    torch.set_num_threads(before)


def batch(number=80):
    return random_rows(number, 5), torch.randint(0, 6, (number // 2,)).repeat(2)


SHIFTED = [("out", "all", 0.0015), ("in", "one_positive", 0.0015)]  # sums as logarithms


@pytest.mark.parametrize(("summation", "denominator", "temperature"), [(*option, 0.1) for option in OPTIONS] + SHIFTED)
def test_equal_to_the_reference(summation, denominator, temperature):
    rows, labels = batch()
    refs = {"ref_emb": random_rows(60, 5), "ref_labels": torch.randint(0, 6, (60,))}
    for options in ({}, {"positives_cap": 4}, {"contrast_mode": "one"}, refs):
        given = {"temperature": temperature, "summation": summation, "denominator": denominator, "num_views": 2}
        shared, dense = (
            loss_and_gradient(rows, labels, backend=backend, **given, **options) for backend in ("tiled", "reference")
        )
        torch.testing.assert_close(shared, dense, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("target", [LabelSets(), LabelSets("overlap"), SoftLabels(), SoftLabels("count")])
@pytest.mark.parametrize(("summation", "denominator", "temperature"), [("out", "all", 0.1), *SHIFTED])
def test_targets_equal_the_reference(target, summation, denominator, temperature):
    rows, labels = random_rows(80, 5), torch.rand(80, 4) < 0.3
    labels |= torch.nn.functional.one_hot(torch.randint(0, 4, (80,))) == 1
    labels = labels * torch.rand(80, 4) if isinstance(target, SoftLabels) else labels
    options = {"temperature": temperature, "summation": summation, "denominator": denominator, "target": target}
    ours, right = (loss_and_gradient(rows, labels, backend=backend, **options) for backend in ("tiled", "reference"))
    torch.testing.assert_close(ours, right, rtol=1e-8, atol=1e-9)
    again = loss_and_gradient(rows, labels, backend="tiled", **options)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, again, strict=True))


def test_work_is_divided_and_the_threads_stay(monkeypatch):
    seen = set()
    positives, meeting = layout.Layout.positives, threading.Barrier(2, timeout=60)  # of both threads

    def spy(self, box):
        thread = threading.current_thread().name, torch.get_num_threads()
        if thread not in seen:
            seen.add(thread)
            meeting.wait()
        return positives(self, box)

    monkeypatch.setattr(layout.Layout, "positives", spy)
    rows, labels = batch(200)
    supcon_loss(rows, labels, backend="tiled")
    assert {(name.rpartition("_")[0], threads) for name, threads in seen} == {("pml_supcon", 1)}
    assert len(seen) == 2
    assert torch.get_num_threads() == 2
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]


def test_repeats_to_the_last_bit():
    rows, labels = batch(300)
    first, *others = (loss_and_gradient(rows.float(), labels, backend="tiled") for _ in range(5))
    assert all(torch.equal(mine, theirs) for other in others for mine, theirs in zip(first, other, strict=True))


def test_callers_that_start_together_keep_their_threads():
    """Call from several new threads, like `DataParallel`; each reads torch's number of threads first."""
    number = 6
    start, seen = threading.Barrier(number), []

    def call():
        start.wait()
        execution.map_in_threads(list, range(20), torch.device("cpu"))
        seen.append(torch.get_num_threads())

    callers = [threading.Thread(target=call) for _ in range(number)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert seen == [2] * number
    assert torch.get_num_threads() == 2


def test_errors_are_raised():
    def fail(items):
        raise KeyError(len(items))

    with pytest.raises(KeyError):
        execution.map_in_threads(fail, range(20), torch.device("cpu"))


def test_results_are_in_order():
    parts = execution.map_in_threads(list, range(17), torch.device("cpu"))
    assert parts == [list(range(0, 17, 2)), list(range(1, 17, 2))]
    assert execution.map_in_threads(list, range(15), torch.device("cpu")) == [list(range(15))]  # too few to divide
