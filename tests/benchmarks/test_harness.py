"""The benchmarks' harness on tiny sizes: turns, quantiles, limits, failures, and the CSV that it appends to."""

import time
from dataclasses import replace

import harness
import providers
import pytest
import records
import torch
from harness import Entry, Run, Timing
from memory import Peak
from providers import Case, Step

MB = 10**6
CASE = Case(64, D=8, classes=5)


def run_with(output, question="test"):
    return Run(question, quick=True, device="cpu", output=output, environment=records.environment("cpu"))


def taking(seconds_forward, seconds_backward=None):
    """Return a maker of a step that takes these seconds of `clock`."""
    backward = None if seconds_backward is None else lambda _: clock.advance(seconds_backward)
    return lambda: Step(lambda: clock.advance(seconds_forward), backward)


class clock:  # noqa: N801 - replaces the module `time`
    now = 0.0

    @classmethod
    def advance(cls, seconds):
        cls.now += seconds
        return torch.zeros(())

    @classmethod
    def perf_counter(cls):
        return cls.now


def test_modes_are_the_halves_and_their_sum(monkeypatch):
    monkeypatch.setattr(harness, "time", clock)
    slow = harness.time_in_turns({"slow": taking(20, 30)}, "cpu", seconds=1, least=3, most=9)["slow"]
    assert (len(slow.samples), clock.now) == (3, 150)  # the least number, and the first counts
    timings = harness.time_in_turns({"halves": taking(1, 3), "whole": taking(2)}, "cpu", seconds=40, least=3, most=9)
    halves, whole = timings["halves"], timings["whole"]
    assert harness.quantiles([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == pytest.approx((2.0, 3.5, 5.0))
    assert [halves.quantiles(mode) for mode in harness.MODES] == [(1, 1, 1), (3, 3, 3), (4, 4, 4)]
    assert [whole.quantiles(mode) for mode in harness.MODES] == [None, None, (2, 2, 2)]
    assert (len(halves.samples), len(whole.samples)) == (5, 9)  # each has half of the 40 s, and 9 is the most


def test_turns_are_spread_over_all_rounds():
    rounds = list(harness.spread({"often": 12, "seldom": 3, "never": 0}))
    assert len(rounds) == 12
    assert [i for i, turns in enumerate(rounds) if "seldom" in turns] == [3, 7, 11]
    assert all("often" in turns and "never" not in turns for turns in rounds)
    assert {tuple(turns) for turns in harness.spread({"a": 20, "b": 20})} == {("a", "b"), ("b", "a")}
    assert list(harness.spread({})) == []


def test_a_failing_step_is_recorded_and_the_others_go_on(tmp_path, no_probe, monkeypatch):
    def backward(_):
        raise RuntimeError("no gradient today\nsecond line")

    monkeypatch.setitem(providers.MAKERS, "broken", lambda *_: Step(lambda: torch.zeros(()), backward))
    run = run_with(tmp_path / "results.csv")
    run.measure([Entry("broken", CASE), Entry("pml", CASE), Entry("nobody/home", CASE)])
    found = {(r.name, r.mode): r for r in records.read(run.output)}
    assert found["broken", "both"].status == "failed: RuntimeError: no gradient today"
    assert found["nobody/home", "both"].status == "failed: KeyError: 'nobody'"
    assert {name for name, mode in found if mode != "both"} == {"pml"}
    assert found["broken", "both"].p50 is None
    assert found["pml", "both"].p50 > 0


def test_a_step_that_failed_apart_is_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "probe", lambda name, case, limit_s: Peak("out of memory", None))
    monkeypatch.setattr(harness, "make_step", lambda *_: pytest.fail("must not be made"))
    (record,) = run_with(tmp_path / "results.csv").measure([Entry("pml", CASE)])
    assert (record.status, record.p50, record.peak_extra_mb, record.repetitions) == ("out of memory", None, None, 0)


def test_time_limit_ends_a_step(monkeypatch):
    monkeypatch.setattr(harness, "LIMIT_S", 0.05)

    def endless():
        time.sleep(600)

    timings = harness.time_in_turns({"endless": lambda: Step(endless, None)}, "cpu", seconds=1, least=1, most=1)
    assert timings["endless"] == Timing("over 0.05 s", [])
    time.sleep(0.1)  # the alarm is off again


def test_csv_keeps_old_rows_and_its_header(tmp_path, no_probe):
    path = tmp_path / "results.csv"
    first = run_with(path).measure([Entry("floor/16", CASE)])
    old = path.read_text()
    second = run_with(path, question="again").measure([Entry("pml", CASE, memory=False)])
    text = path.read_text()
    assert text.startswith(old)
    assert text.count("question,provider") == 1
    assert len(text.splitlines()) == 1 + 1 + 3
    back = records.read(path)
    assert [r.question for r in back] == ["test"] + ["again"] * 3
    for written, read in zip(first + second, back, strict=True):
        assert read.p50 == pytest.approx(written.p50, rel=1e-5)
        assert replace(read, p20=0, p50=0, p80=0) == replace(written, p20=0, p50=0, p80=0)
    assert [(r.mode, r.peak_extra_mb) for r in back] == [
        ("both", pytest.approx(64 * 64**2 / MB, rel=1e-5)),
        ("forward", None),
        ("backward", None),
        ("both", None),
    ]


def test_csv_of_other_columns_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("question,seconds\na,1\n")
    with pytest.raises(ValueError, match=r"to have the columns .* but got \['question', 'seconds'\]"):
        records.append(path, [])
    with pytest.raises(ValueError, match="to have the columns"):
        records.read(path)
    assert path.read_text() == "question,seconds\na,1\n"
    assert records.read(tmp_path / "none.csv") == []
    assert all(records.environment("cpu").values())


def test_latest_takes_the_last_of_each_measurement(tmp_path, no_probe):
    one, two = (run_with(None).measure([Entry("pml", CASE), Entry("floor/16", CASE)]) for _ in range(2))
    assert records.latest(one + two) == two
    assert len(records.latest([*one, replace(one[0], N=128)])) == len(one) + 1
    later = [replace(record, date="2999") for record in two[:1]]
    assert records.last_run(one + later, "test") == later
