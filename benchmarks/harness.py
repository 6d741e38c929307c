"""How the benchmarks measure: providers timed in turns, memory apart from time, every outcome a record.

A script names its entries (a provider on a case) and calls `Run.measure`. Steps are timed round by round, each round
in another order, so that the noise of the machine and what the step before left in the caches hit all alike.
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
from limits import bounded_memory, status_of, time_limit
from memory import Peak, probe
from providers import Case, Step, make_step
from records import OK, RESULTS, Record, append, environment

LIMIT_S = 180.0  # of one step, its compilation included
LONG_S = 5.0  # a first step that takes longer is as good as a later one, and counts
QUANTILES = (0.2, 0.5, 0.8)
MODES = ("forward", "backward", "both")

K = TypeVar("K", bound=Hashable)


class Entry(NamedTuple):
    """A provider (see `providers.make_step`) on a case; `memory`: whether to measure that too."""

    provider: str
    case: Case
    memory: bool = True


@dataclass
class Timing:
    """Seconds forward and backward of each timed step (backward None: the step is one piece), or why there are none."""

    status: str = OK
    samples: list[tuple[float, float | None]] = field(default_factory=list)

    def quantiles(self, mode: str) -> tuple[float, ...] | None:
        """The quantiles of a mode; None where the step has no such part."""
        pick: dict[str, Callable[[float, float | None], float | None]] = {
            "forward": lambda forward, backward: None if backward is None else forward,
            "backward": lambda forward, backward: backward,
            "both": lambda forward, backward: forward + (backward or 0),
        }
        times = [seconds for sample in self.samples if (seconds := pick[mode](*sample)) is not None]
        return quantiles(times) if times else None


@dataclass(frozen=True)
class Run:
    """One run of one script: what it asks, where, and where its records go."""

    question: str
    quick: bool
    device: str
    output: Path | None
    environment: dict[str, Any]

    @staticmethod
    def of(question: str, description: str | None, arguments: Sequence[str] | None) -> "Run":
        """The run that a command line asks for."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="tiny sizes, one repetition, to see that it works")
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        parser.add_argument("--output", type=Path, help=f"CSV to append to (default: {RESULTS}; with --quick: none)")
        asked = parser.parse_args(arguments)
        if asked.device == "cuda" and not torch.cuda.is_available():
            parser.error("--device cuda: there is no CUDA device here")
        output = asked.output or (None if asked.quick else RESULTS)
        return Run(question, asked.quick, asked.device, output, environment(asked.device))

    @property
    def ours(self) -> list[str]:
        """Our backends worth timing on the device, the first the one that "auto" is to take."""
        return ["pml_supcon/triton", "pml_supcon/tiled"] if self.device == "cuda" else ["pml_supcon/auto"]

    @property
    def floors(self) -> list[str]:
        """The floor in the tile sizes that may be its fastest on the device."""
        return [f"floor/{tile}" for tile in ((2048, 4096, 8192) if self.device == "cuda" else (512, 1024))]

    def case(self, N: int, *, quick_N: int = 256, **options: Any) -> Case:
        """A case of `N` rows on the device of the run, of `quick_N` in a quick run."""
        return Case(quick_N if self.quick else N, device=self.device, **options)

    def measure(
        self, entries: Sequence[Entry], *, seconds: float = 45.0, least: int = 3, most: int = 50
    ) -> list[Record]:
        """Peaks, then times of all entries in turns; the records are appended to the CSV and returned.

        Args:
            entries: what to measure, each once.
            seconds: how long the timing may take, an equal share for each entry.
            least: steps of an entry at least, whatever its share; a quick run makes one.
            most: steps of an entry at most.
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

    def _records(self, entry: Entry, peak: Peak, timing: Timing) -> list[Record]:
        provider, _, backend = entry.provider.partition("/")
        base = asdict(entry.case) | self.environment | {"question": self.question, "status": timing.status}
        base |= {"provider": provider, "backend": backend, "repetitions": len(timing.samples)}
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
    """Time steps in turns (see `Run.measure`); one that raises is out, and its timing says why."""
    timings: dict[K, Timing] = {key: Timing() for key in makers}
    steps: dict[K, Step] = {}

    def attempt(key: K, action: Callable[[], float]) -> float:
        try:
            with bounded_memory(device), time_limit(LIMIT_S):
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
    takes = {key: attempt(key, partial(first_steps, key)) for key in makers}
    wanted = {
        key: min(most, max(least, int(share / max(takes[key], 1e-9)))) - len(timings[key].samples) for key in makers
    }
    for turns in spread(wanted):
        gc.collect()
        gc.disable()  # as `timeit` does: a collection would hit whoever's turn it is
        try:
            for key in turns:
                if key in steps:
                    attempt(key, partial(timed, key))
        finally:
            gc.enable()
    return timings


def spread(wanted: Mapping[K, int]) -> Iterator[list[K]]:
    """Rounds in which each key has its turn as often as wanted, evenly over all rounds and in changing order."""
    rounds = max(wanted.values(), default=0)
    order = random.Random(0)
    for done in range(rounds):
        turns = [key for key, number in wanted.items() if (done + 1) * number // rounds > done * number // rounds]
        order.shuffle(turns)
        yield turns


def time_step(step: Step, device: str) -> tuple[float, float | None]:
    """Seconds forward and backward of one step, on the device's own clock where it has one."""
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
    """The quantiles `QUANTILES` of a sample, linear between its members."""
    return tuple(torch.tensor(times, dtype=torch.float64).quantile(q).item() for q in QUANTILES)


def describe(record: Record) -> str:
    """A record as a line to read while the script runs."""
    where = f"N={record.N} D={record.D} {record.dtype} {record.option}: {record.name}"
    if record.status != OK or record.p50 is None:
        return f"{where}: {record.status}"
    extra = "" if record.peak_extra_mb is None else f", {record.peak_extra_mb:.1f} MB extra"
    low, middle, high = ((seconds or 0) * 1e3 for seconds in (record.p20, record.p50, record.p80))
    return f"{where}: {middle:.1f} ms ({low:.1f} to {high:.1f}){extra}"
