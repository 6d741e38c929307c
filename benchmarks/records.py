"""The records of the benchmarks: an append-only CSV with the environment of every measurement."""

import csv
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import torch

from pml_supcon.training.environment import git

RESULTS = Path(__file__).resolve().parent / "results.csv"
TABLES = RESULTS.parent.parent / "docs" / "records"
MB = 1e6  # bytes
OK = "ok"
KEY = ("question", "provider", "backend", "N", "D", "classes", "views", "dtype", "option", "mode", "device")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of the CSV: a provider on a case, in one mode.

    Attributes:
        question: the script.
        provider: the library of the loss; `backend`: its implementation, where it has several.
        N: rows; `D`: their width; `classes`, `views`: the structure of the labels.
        option: the variant of the loss, or the miner.
        mode: "forward", "backward" or "both"; of a check, the name of its figure.
        status: "ok", or the reason of a missing figure: "out of memory", "over 180 s", "skipped: ...", "failed: ...".
        repetitions: number of timed steps.
        p20: with `p50` and `p80` the quantiles of a step's seconds.
        peak_extra_mb: peak memory of a whole step above its inputs, in 10^6 bytes; not in the modes of a half.
        value: the figure of a check that is neither seconds nor MB: a relative error, or a number of launches.
        device: "cpu" or "cuda"; `hardware`: its name.
        commit: the commit of this package, with "+" where files differ from it.
        date: in UTC, the same for all records of one run.
    """

    question: str
    provider: str
    backend: str
    N: int
    D: int
    classes: int
    views: int
    dtype: str
    option: str
    mode: str
    status: str
    repetitions: int
    p20: float | None
    p50: float | None
    p80: float | None
    peak_extra_mb: float | None
    value: float | None
    device: str
    hardware: str
    cpus: int
    threads: int
    torch: str
    python: str
    pml: str
    pml_supcon: str
    commit: str
    date: str

    @property
    def name(self) -> str:
        """The provider with its backend, "provider/backend"."""
        return f"{self.provider}/{self.backend}" if self.backend else self.provider


COLUMNS = [field.name for field in fields(Record)]


def append(path: Path, records: Iterable[Record]) -> None:
    """Append records to a CSV; create it where it is missing. Existing rows never change.

    Raises:
        ValueError: If the file has other columns.
    """
    new = not path.exists() or path.stat().st_size == 0
    if not new:
        _check_columns(path)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for record in records:
            row = asdict(record)
            writer.writerow({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()})


def read(path: Path) -> list[Record]:
    """Return all records of a CSV in order, an empty list where there is no file.

    Raises:
        ValueError: If the file has other columns.
    """
    if not path.exists():
        return []
    _check_columns(path)
    kinds = get_type_hints(Record)

    def parsed(name: str, text: str) -> Any:
        if kinds[name] in (str, int):
            return kinds[name](text)
        return float(text) if text else None

    with path.open(newline="") as file:
        return [Record(**{name: parsed(name, row[name]) for name in COLUMNS}) for row in csv.DictReader(file)]


def _check_columns(path: Path) -> None:
    with path.open(newline="") as file:
        header = next(csv.reader(file), [])
    if header != COLUMNS:
        raise ValueError(f"Expected {path} to have the columns {COLUMNS}, but got {header}; name another file")


def latest(records: Iterable[Record]) -> list[Record]:
    """Return the last record of each measurement, in the order of the first records."""
    found = {tuple(getattr(record, name) for name in KEY): record for record in records}
    return list(found.values())


def last_run(records: Sequence[Record], question: str) -> list[Record]:
    """Return the records of the last run of one script."""
    asked = [record for record in records if record.question == question]
    return [record for record in asked if record.date == asked[-1].date]


def environment(device: str) -> dict[str, Any]:
    """Return the environment of a measurement: machine, threads, versions, commit and time."""
    return {
        "device": device,
        "hardware": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "cpus": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "pml": version("pytorch-metric-learning"),
        "pml_supcon": version("pml-supcon"),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _commit() -> str:
    """Return the commit of this checkout, with "+" where files other than the results differ from it."""
    generated = (":!benchmarks/results.csv", ":!docs/benchmarks.md", ":!docs/figures")
    try:
        changed = git("status", "--porcelain", "--", ".", *generated, folder=TABLES.parents[1])
        return git("rev-parse", "--short=12", "HEAD", folder=TABLES.parents[1]) + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def keep_table(name: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table with columns of its own as JSON; `docs/make_tables.py` puts it on its page."""
    record = {"environment": environment("cpu"), "header": list(header), "rows": [list(row) for row in rows]}
    (TABLES / f"benchmark-{name}.json").write_text(json.dumps(record, indent=1) + "\n")
