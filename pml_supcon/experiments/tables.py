"""The tables of an experiment in Markdown."""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "\u2013"
PROGRAM = "python recipes/reproduce.py"


def tables_of(record: Mapping[str, Any]) -> str:
    """Return the page section of a result of ``with_text``: claim, scores, verdicts, notes and origin."""
    claim = f"**The paper:** {record['claim']} *({record['source']})*"
    notes = " ".join([*record["notes"], *_warnings(record)])
    parts = [claim, scores_table(record), comparisons_table(record), notes, _origin(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def scores_table(record: Mapping[str, Any]) -> str:
    """Return the table of scores: mean over the seeds, standard deviation, and the paper's value."""
    panels = list(dict.fromkeys(line["panel"] for line in record["lines"]))
    several = len(panels) > 1
    rows = []
    for line in record["lines"]:
        paper = MISSING if line["paper"] is None else decimal(line["paper"])
        measure = [line["panel"]] if several else []
        rows.append([line["label"], *measure, mean_and_deviation(line["values"], line["percent"]), paper])
    return _table(["", "measure", "here", "paper"] if several else ["", panels[0], "paper"], rows, numbers=2)


def comparisons_table(record: Mapping[str, Any]) -> str:
    """Return the table of orderings: verdict, mean difference and interval, and the paper's difference."""
    rows = []
    for each in record["comparisons"]:
        unit = 100 if each["percent"] else 1
        known = each["low"] is not None
        cells = [
            each["title"] + ("" if each["claimed"] else " (not in the paper)"),
            f"**{each['verdict']}**" if each["verdict"] in ("held", "reversed") else each["verdict"],
            MISSING if each["mean"] is None else signed(each["mean"] * unit),
            f"{signed(each['low'] * unit)} to {signed(each['high'] * unit)}" if known else MISSING,
            MISSING if each["paper"] is None else decimal(each["paper"], sign="+"),
        ]
        rows.append(cells)
    return _table(["ordering", "here", "ahead by", "95% interval", "paper"], rows, numbers=3)


def mean_and_deviation(values: Sequence[float | None], percent: bool) -> str:
    """Format the mean over seeds and the standard deviation."""
    if any(value is None for value in values):
        return "diverged"
    scaled = [(100 if percent else 1) * float(value) for value in values if value is not None]
    digits = 2 if percent or max(map(abs, scaled)) < 10 else 0
    mean = f"{statistics.mean(scaled):.{digits}f}"
    return mean if len(scaled) < 2 else f"{mean} ± {statistics.stdev(scaled):.{digits}f}"


def decimal(value: float, sign: str = "") -> str:
    """Format a number of the paper with its own decimals, at least one."""
    return f"{value:{sign}.{2 if round(value, 1) != value else 1}f}"


def signed(value: float) -> str:
    """Format a difference with its sign, in the unit of the table."""
    return f"{round(value, 2) + 0.0:+.2f}" if abs(value) < 100 else f"{value:+.0f}"


def _warnings(record: Mapping[str, Any]) -> list[str]:
    warnings = []
    edges = [name for name, training in record["trainings"].items() if training["at_edge"]]
    if edges:
        warnings.append(
            "The chosen learning rate is the lowest or highest of the candidates, so a better one may exist, for: "
            f"{', '.join(f'`{name}`' for name in edges)}."
        )
    for name, training in record["trainings"].items():
        if training["diverged"]:
            warnings.append(
                f"`{name}` diverged with seed {', '.join(training['diverged'])}; its accuracy counts as chance."
            )
        if training["not_scored"]:
            reasons = "; ".join(dict.fromkeys(why for each in training["not_scored"].values() for why in each))
            warnings.append(f"`{name}` could not be scored with seed {', '.join(training['not_scored'])}: {reasons}.")
    return warnings


def _origin(record: Mapping[str, Any]) -> str:
    origin = {name: ", ".join(values) for name, values in record["origin"].items()}
    seeds, code = ", ".join(map(str, record["seeds"])), record["assembled"]["commit"]
    given = "".join(
        f" {flag} {value if flag == '--seeds' else shlex.quote(value)}" for flag, value in record["given"].items()
    )
    program, of = ("pml-supcon reproduce", "version/pml-supcon") if code is None else (PROGRAM, "commit")
    setup = {"processes": origin["processes"], "device": origin["device"], "CPU cores": origin["cpus"]}
    setup["precision"] = origin["precision"].replace("no", "float32")
    return (
        f"`{program} {record['experiment']} --scale {record['scale']}{given}`, seeds {seeds}; trained on "
        f"{origin['date']}, {', '.join(f'{name}: {value}' for name, value in setup.items())}; torch "
        f"{origin['version/torch']}, {of.removeprefix('version/')} {origin[of]}; assembled on "
        f"{record['assembled']['date']} with {code or origin[of]}."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int) -> str:
    """Format a table; the last column (the paper) is left out if no row has a value."""
    table = [head, ["---"] * (len(head) - numbers) + ["---:"] * numbers, *rows]
    if all(row[-1] == MISSING for row in rows):
        table = [row[:-1] for row in table]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)
