"""The records of the benchmarks: one CSV, append-only, and what a record says of where it was taken."""

import csv
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import torch

RESULTS = Path(__file__).resolve().parent / "results.csv"
TABLES = RESULTS.parent.parent / "docs" / "records"
MB = 1e6  # bytes
OK = "ok"
KEY = ("question", "provider", "backend", "N", "D", "classes", "views", "dtype", "option", "mode", "device")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of the CSV: a provider on a case, in one mode.

    Attributes:
        question: the script that asked.
        provider: whose loss; `backend`: which of its ways, where it has several.
        N: rows; `D`: their width; `classes`, `views`: what the labels are like.
        option: the variant of the loss, or the miner.
        mode: "forward", "backward" or "both".
        status: "ok", or why there is no figure: "out of memory", "over 180 s", "skipped: ...", "failed: ...".
        repetitions: how many steps the quantiles are of.
        p20: seconds of a step, with `p50` and `p80` its quantiles.
        peak_extra_mb: memory above the inputs at the peak of a whole step, in 10^6 bytes; in the mode "both" only.
        device: "cpu" or "cuda"; `hardware`: its name.
        commit: of this package, with "+" where files differ from it.
        date: UTC, the same for all records of one run.
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
        """Provider and backend in one, as the harness names them."""
        return f"{self.provider}/{self.backend}" if self.backend else self.provider


COLUMNS = [field.name for field in fields(Record)]


def append(path: Path, records: Iterable[Record]) -> None:
    """Add records to a CSV, which is made where there is none; what it holds is never touched.

    Raises:
        ValueError: the file has other columns.
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
    """All records of a CSV in their order; none where there is no file.

    Raises:
        ValueError: the file has other columns.
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
    """Of each measurement its last record, in the order in which the measurements first came."""
    found = {tuple(getattr(record, name) for name in KEY): record for record in records}
    return list(found.values())


def last_run(records: Sequence[Record], question: str) -> list[Record]:
    """The records of the last run of one script."""
    asked = [record for record in records if record.question == question]
    return [record for record in asked if record.date == asked[-1].date]


def environment(device: str) -> dict[str, Any]:
    """What a figure depends on besides the case: machine, threads, versions, commit; and the time."""
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
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of this checkout, with "+" where files other than the results differ from it."""
    here = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    generated = (":!benchmarks/results.csv", ":!docs/benchmarks.md", ":!docs/figures")
    try:
        changed = git("status", "--porcelain", "--", ".", *generated)
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def keep_table(name: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Record a table whose columns are not those of the CSV, for `docs/make_tables.py` to put on its page."""
    record = {"environment": environment("cpu"), "header": list(header), "rows": [list(row) for row in rows]}
    (TABLES / f"benchmark-{name}.json").write_text(json.dumps(record, indent=1) + "\n")
