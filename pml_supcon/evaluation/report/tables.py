"""The tables of a report: one or two evaluations beside each other, and which is better."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Section = Mapping[str, Any]
Values = Mapping[str, float | None]

NAMES = {
    "precision_at_1": "Precision at 1",
    "r_precision": "R-precision",
    "mean_average_precision_at_r": "MAP@R",
    "knn_accuracy": "k-NN accuracy",
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "accuracy": "Accuracy",
    "ece": "ECE",
    "classwise_ece": "Class-wise ECE",
    "nll": "Negative log-likelihood",
    "brier": "Brier score",
    "linear_probe": "Linear probe, top-1",
    "nmi": "NMI of k-means",
    "ami": "AMI of k-means",
    "jpeg_compression": "JPEG compression",
    "mean_error": "Mean error under corruption",
    "mean_corruption_error": "mCE",
}
CLASS_METRICS = ("mean_average_precision_at_r", "precision_at_1", "knn_accuracy", "linear_probe")
LOWER_IS_BETTER = {"ece", "classwise_ece", "nll", "brier", "mean_error", "mean_corruption_error"}
NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


class Difference(NamedTuple):
    """The second value less the first, and in a word which is better; `side` is `better`, `worse` or `same`."""

    text: str
    side: str


class Row(NamedTuple):
    """A row of a table: what, its value in each evaluation, and the difference where there are two."""

    name: str
    values: list[str]
    difference: Difference | None
    lower: bool


class Cell(NamedTuple):
    """A cell of a table that can be sorted: what is read, and what it is sorted by (None comes last)."""

    text: str
    value: float | None


class ClassTable(NamedTuple):
    """One row per class, worst first."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    by: str


def named(metric: str) -> str:
    """The name of a metric in a table.

    Examples:
        >>> named("recall_at_4"), named("classwise_ece")
        ('Recall at 4', 'Class-wise ECE')
    """
    return NAMES.get(metric) or metric.replace("_", " ")[:1].upper() + metric.replace("_", " ")[1:]


def figure(value: float | None) -> str:
    """A number as a table shows it: three decimals, or three digits of what is large or tiny.

    Examples:
        >>> figure(0.98765), figure(None), figure(1250), figure(0.00012), figure(31.4159)
        ('0.988', '–', '1,250', '0.00012', '31.4')
    """
    if value is None:
        return NONE
    if isinstance(value, int) or (abs(value) >= 1000 and value == int(value)):
        return f"{int(value):,}"
    if abs(value) < 1e-9 or 0.001 <= abs(value) < 10:
        return f"{value if abs(value) >= 1e-9 else 0:.3f}"
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.2e}"


def difference(first: float | None, second: float | None, *, lower: bool) -> Difference:
    """How the second value stands to the first.

    Examples:
        >>> difference(0.25, 0.125, lower=True), difference(0.5, 0.5001, lower=False)
        (Difference(text='−0.125', side='better'), Difference(text='0.000', side='same'))
    """
    if first is None or second is None:
        return Difference(NONE, "")
    by = second - first
    if abs(by) < 0.0005:  # nothing of it is left in three decimals
        return Difference("0.000", "same")
    return Difference(f"{'+' if by > 0 else MINUS}{abs(by):.3f}", "better" if (by < 0) == lower else "worse")


def rows(found: Sequence[Values], *, lower: bool | None = None) -> list[Row]:
    """A row for each metric that any evaluation has, in the order in which they come.

    Args:
        found: the metrics of each evaluation.
        lower: whether lower is better; None: as is known of the metric.
    """
    metrics = dict.fromkeys(metric for each in found for metric in each)
    table = []
    for metric in metrics:
        values = [each.get(metric) for each in found]
        less = metric in LOWER_IS_BETTER if lower is None else lower
        change = difference(*values, lower=less) if len(values) == 2 else None
        table.append(Row(named(metric), [figure(value) for value in values], change, less))
    return table


def summary(sections: Sequence[Section]) -> list[tuple[str, str, list[Row]]]:
    """What each section comes to: its title, its anchor and a few rows."""
    parts = (
        ("Retrieval", "retrieval", ("precision_at_1", "mean_average_precision_at_r", "knn_accuracy")),
        ("Linear probe", "linear-probe", ("top1", "top5")),
    )
    table = []
    for title, anchor, wanted in parts:
        found = [_part(each, anchor.replace("-", "_"), "metrics") for each in sections]
        table.append((title, anchor, rows([{name: each[name] for name in wanted if name in each} for each in found])))
    for when in ("before", "after"):
        found = [{"ece": each["ece"]} if each else {} for each in (_part(s, "calibration", when) for s in sections)]
        title = f"Calibration, {when} temperature scaling"
        table.append((title, "calibration", rows(found)))
    table.append(
        ("Corruption", "corruption", rows([corruption_values(each.get("corruption", {})) for each in sections]))
    )
    return [part for part in table if part[2]]


def corruption_values(section: Section) -> dict[str, float | None]:
    """What a section on corruptions comes to; the mCE only where there is a baseline."""
    names = [name for name in ("mean_error", "mean_corruption_error") if section.get(name) is not None]
    return {name: section[name] for name in names}


def class_table(sections: Sequence[Section], classes: Sequence[str], letters: Sequence[str]) -> ClassTable | None:
    """Retrieval and the linear probe class by class, those first that fare worst by the first metric of the first.

    Of the metrics of retrieval those in `CLASS_METRICS` are shown, for a table of all would be too wide to be read.
    """
    found = [_by_class(each) for each in sections]
    metrics = [
        metric for metric in CLASS_METRICS if any(metric in values for each in found for values in each.values())
    ]
    if not metrics:
        return None
    two = len(letters) == 2
    columns = ["queries"]
    for metric in metrics:
        columns += [f"{named(metric)} {letter}".strip() for letter in letters]
        columns += [f"{named(metric)} B\N{NO-BREAK SPACE}{MINUS}\N{NO-BREAK SPACE}A"] if two else []
    table = []
    for name in classes:
        per = [each.get(name, {}) for each in found]
        queries = next((values["queries"] for values in per if "queries" in values), None)
        cells = [Cell(figure(queries), queries)]
        for metric in metrics:
            values = [each.get(metric) for each in per]
            cells += [Cell(figure(value), value) for value in values]
            if two:
                first, second = values
                by = None if first is None or second is None else second - first
                cells.append(Cell(difference(first, second, lower=False).text, by))
        table.append((name, cells))
    table.sort(key=lambda row: _or_last(row[1][1].value))
    return ClassTable(columns, table, columns[1])


def _or_last(value: float | None) -> float:
    return math.inf if value is None else value


def _by_class(sections: Section) -> dict[str, dict[str, float | None]]:
    merged: dict[str, dict[str, float | None]] = {}
    for name, values in _part(sections, "retrieval", "per_class").items():
        merged.setdefault(name, {}).update(values)
    for name, value in _part(sections, "linear_probe", "per_class").items():
        merged.setdefault(name, {})["linear_probe"] = value
    return merged


def _part(sections: Section, section: str, part: str) -> Any:
    return sections.get(section, {}).get(part, {})


def about(evaluations: Sequence[Section]) -> list[tuple[str, list[str]]]:
    """What the evaluations were made with, name by name."""
    names = dict.fromkeys(name for each in evaluations for name in each["about"])
    return [(name, [spoken(each["about"].get(name)) for each in evaluations]) for name in names]


def spoken(value: Any) -> str:
    """A JSON value in words.

    Examples:
        >>> spoken({"map": 1.25, "parts": [1, None]})
        'map 1.250, parts 1 –'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {spoken(item)}" for name, item in value.items()) or NONE
    if isinstance(value, list | tuple):
        return " ".join(map(spoken, value)) or NONE
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return figure(value)
    return str(value)
