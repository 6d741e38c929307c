"""The harness of the benchmarks: times providers in turns, measures memory apart, records every outcome.

A script lists its entries (a provider on a case) and calls `Run.measure`. Steps are timed in rounds, each in another
order, so that the noise of the machine and the cache contents of the previous step affect all alike.
"""

import argparse
import gc
import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from memory import Peak, bounded_memory, probe, status_of, time_limit
from providers import Case, Step, make_step
from records import OK, RESULTS, Record, append, environment

LIMIT_S = 180.0  # of one step, with its compilation
LONG_S = 2.0  # a first step that takes longer counts as a measurement: its warm-up is a small share
QUANTILES = (0.2, 0.5, 0.8)
MODES = ("forward", "backward", "both")

K = TypeVar("K", bound=Hashable)


class Entry(NamedTuple):
    """A provider (see `providers.make_step`) on a case; with `memory` the peak memory is measured too."""

    provider: str
    case: Case
    memory: bool = True


@dataclass
class Timing:
    """The status, and the seconds forward and backward of each timed step; backward is None for a step in one piece."""

    status: str = OK
    samples: list[tuple[float, float | None]] = field(default_factory=list)

    def quantiles(self, mode: str) -> tuple[float, ...] | None:
        """Return the quantiles of a mode, None where the step has no such part."""
        if mode == "both":
            times = [forward + (backward or 0) for forward, backward in self.samples]
        else:
            halves = [(forward, backward) for forward, backward in self.samples if backward is not None]
            times = [half[mode == "backward"] for half in halves]
        return quantiles(times) if times else None


@dataclass(frozen=True)
class Run:
    """One run of a script: its name (`question`), device, environment, and the CSV of its records."""

    question: str
    quick: bool
    device: str
    output: Path | None
    environment: dict[str, Any]

    @staticmethod
    def of(question: str, description: str | None, arguments: Sequence[str] | None) -> "Run":
        """Return the run of a command line."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="tiny sizes, one repetition, only to try the script")
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        parser.add_argument("--output", type=Path, help=f"CSV to append to (default: {RESULTS}; with --quick: none)")
        asked = parser.parse_args(arguments)
        if asked.device == "cuda" and not torch.cuda.is_available():
            parser.error("--device cuda: this machine has no CUDA device")
        output = asked.output or (None if asked.quick else RESULTS)
        return Run(question, asked.quick, asked.device, output, environment(asked.device))

    @property
    def floors(self) -> list[str]:
        """The floor in the tile sizes that may be the fastest on a CPU; on a GPU the product that gives its rate."""
        return [f"mm/{256 if self.quick else 8192}"] if self.device == "cuda" else ["floor/512", "floor/1024"]

    def case(self, N: int, *, quick_N: int = 256, **options: Any) -> Case:
        """Return a case of `N` rows on the device of the run; a quick run has `quick_N` rows."""
        return Case(quick_N if self.quick else N, device=self.device, **options)

    def measure(
        self, entries: Sequence[Entry], *, seconds: float = 45.0, least: int = 3, most: int = 50
    ) -> list[Record]:
        """Measure the peaks, then the times of all entries in turns; append the records to the CSV and return them.

        Args:
            entries: distinct entries.
            seconds: duration of the timing, shared equally by the entries.
            least: minimum number of steps of an entry; a quick run has one.
            most: maximum number of steps of an entry.
        """
        peaks = {e: probe(e.provider, e.case, limit_s=LIMIT_S) if e.memory else Peak(OK, None) for e in entries}
        makers = {e: partial(make_step, e.provider, e.case) for e in entries if peaks[e].status == OK}
        least, most = (1, 1) if self.quick else (least, most)
        timings = time_in_turns(makers, self.device, seconds=seconds, least=least, most=most)
        made = [
            record for e in entries for record in self._records(e, peaks[e], timings.get(e, Timing(peaks[e].status)))
        ]
        for record in made:
            if record.mode == "both":
                print(describe(record), flush=True)
        if self.output is not None:
            append(self.output, made)
        return made

    def note(
        self,
        name: str,
        case: Case,
        mode: str,
        *,
        p50: float | None = None,
        mb: float | None = None,
        value: float | None = None,
        repetitions: int = 1,
    ) -> Record:
        """Append the record of a figure that is measured outside of the turns, and return it."""
        provider, _, backend = name.partition("/")
        figures: dict[str, Any] = {"p20": None, "p50": p50, "p80": None, "peak_extra_mb": mb, "value": value}
        base = asdict(case) | self.environment | {"question": self.question, "repetitions": repetitions}
        record = Record(**base, provider=provider, backend=backend, mode=mode, status=OK, **figures)
        shown = {"ms": p50 and p50 * 1e3, "MB": mb, "": value}
        print(f"N={case.N} {name}, {mode}: " + ", ".join(f"{v:.3g} {k}" for k, v in shown.items() if v is not None))
        if self.output is not None:
            append(self.output, [record])
        return record

    def _records(self, entry: Entry, peak: Peak, timing: Timing) -> list[Record]:
        provider, _, backend = entry.provider.partition("/")
        base = asdict(entry.case) | self.environment | {"question": self.question, "status": timing.status}
        base |= {"provider": provider, "backend": backend, "repetitions": len(timing.samples), "value": None}
        made = []
        for mode in MODES:
            found = timing.quantiles(mode) if timing.status == OK else None
            if found is None and mode != "both":
                continue
            p20, p50, p80 = found or (None, None, None)
            extra = peak.extra_mb if mode == "both" else None
            made.append(Record(**base, mode=mode, p20=p20, p50=p50, p80=p80, peak_extra_mb=extra))
        return made


def time_in_turns(
    makers: Mapping[K, Callable[[], Step]], device: str, *, seconds: float, least: int, most: int
) -> dict[K, Timing]:
    """Time steps in turns (see `Run.measure`); drop one that raises, with the reason in its status."""
    timings: dict[K, Timing] = {key: Timing() for key in makers}
    steps: dict[K, Step] = {}

    def attempt(key: K, action: Callable[[], float]) -> float:
        try:
            with time_limit(LIMIT_S):
                return action()
        except Exception as error:
            timings[key].status = status_of(error)
            steps.pop(key, None)
            return 0.0

    def first_steps(key: K) -> float:
        steps[key] = makers[key]()
        for _ in range(2):
            sample = time_step(steps[key], device)
            if (total := sum(part or 0 for part in sample)) > LONG_S:
                timings[key].samples.append(sample)
                break
        return total

    def timed(key: K) -> float:
        timings[key].samples.append(time_step(steps[key], device))
        return 0.0

    share = seconds / max(1, len(makers))
    with bounded_memory(device):
        takes = {key: attempt(key, partial(first_steps, key)) for key in makers}
        wanted = {
            key: min(most, max(least, int(share / max(takes[key], 1e-9)))) - len(timings[key].samples) for key in makers
        }
        gc.collect()
        gc.freeze()  # so that a collection is short
        gc.disable()  # as `timeit` does: a collection would lengthen one step at random
        try:
            for turns in spread(wanted):
                for key in turns:
                    if key in steps:
                        attempt(key, partial(timed, key))
                gc.collect()
        finally:
            gc.enable()
            gc.unfreeze()
    return timings


def spread(wanted: Mapping[K, int]) -> Iterator[list[K]]:
    """Yield rounds: each key occurs as often as wanted, evenly over all rounds, in an order that changes."""
    rounds = max(wanted.values(), default=0)
    order = random.Random(0)
    for done in range(rounds):
        turns = [key for key, number in wanted.items() if (done + 1) * number // rounds > done * number // rounds]
        order.shuffle(turns)
        yield turns


def time_step(step: Step, device: str) -> tuple[float, float | None]:
    """Return the seconds forward and backward of one step, on CUDA by the device's clock."""
    if device == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        torch.cuda.synchronize()
        events[0].record()
        loss = step.forward()
        events[1].record()
        _gradients = step.backward(loss) if step.backward else None
        events[2].record()
        torch.cuda.synchronize()
        marks = [events[0].elapsed_time(event) / 1000 for event in events]
    else:
        marks = [time.perf_counter()]
        loss = step.forward()
        marks.append(time.perf_counter())
        _gradients = step.backward(loss) if step.backward else None
        marks.append(time.perf_counter())
    return marks[1] - marks[0], marks[2] - marks[1] if step.backward else None


def quantiles(times: Sequence[float]) -> tuple[float, ...]:
    """Return the quantiles `QUANTILES` of a sample, with linear interpolation."""
    return tuple(torch.tensor(times, dtype=torch.float64).quantile(q).item() for q in QUANTILES)


def describe(record: Record) -> str:
    """Return a record as a line of the script's output."""
    where = f"N={record.N} D={record.D} {record.dtype} {record.option}: {record.name}"
    if record.status != OK or record.p50 is None:
        return f"{where}: {record.status}"
    extra = "" if record.peak_extra_mb is None else f", {record.peak_extra_mb:.1f} MB extra"
    low, middle, high = ((seconds or 0) * 1e3 for seconds in (record.p20, record.p50, record.p80))
    return f"{where}: {middle:.3f} ms ({low:.3f} to {high:.3f}){extra}"
