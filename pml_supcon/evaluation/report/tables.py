"""The tables of a report: the values of one or two evaluations, and which of the two is better."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pml_supcon.evaluation.results import Evaluation
from pml_supcon.evaluation.sections import Sections
from pml_supcon.evaluation.sections.corruption import CorruptionSection

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
    """The second value minus the first, as text; ``side`` is ``better``, ``worse`` or ``same`` for the second."""

    text: str
    side: str


class Row(NamedTuple):
    """A row of a table: a metric, its values, and their difference if there are two; ``lower``: lower is better."""

    name: str
    values: list[str]
    difference: Difference | None
    lower: bool


class Cell(NamedTuple):
    """A cell of a sortable table: its text, and the value to sort by (None comes last)."""

    text: str
    value: float | None


class ClassTable(NamedTuple):
    """One row per class, worst first; ``by`` is the column that they are sorted by."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    by: str


def named(metric: str) -> str:
    """Return the name of a metric in a table.

    Examples:
        >>> named("recall_at_4"), named("classwise_ece")
        ('Recall at 4', 'Class-wise ECE')
    """
    return NAMES.get(metric) or metric.replace("_", " ")[:1].upper() + metric.replace("_", " ")[1:]


def format_number(value: float | None) -> str:
    """Format a number for a table: three decimals, or three digits of large and tiny numbers.

    Examples:
        >>> [format_number(value) for value in (0.98765, None, 1250, 0.00012, 31.4159)]
        ['0.988', '–', '1,250', '0.00012', '31.4']
    """
    if value is None:
        return NONE
    if isinstance(value, int) or (abs(value) >= 1000 and value == int(value)):
        return f"{int(value):,}"
    if abs(value) < 1e-9 or 0.001 <= abs(value) < 10:
        return f"{value if abs(value) >= 1e-9 else 0:.3f}"
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.2e}"


def difference(first: float | None, second: float | None, *, lower: bool) -> Difference:
    """Compare the second value with the first.

    Examples:
        >>> difference(0.25, 0.125, lower=True), difference(0.5, 0.5001, lower=False)
        (Difference(text='−0.125', side='better'), Difference(text='0.000', side='same'))
        >>> [tuple(difference(0.25, second, lower=False)) for second in (0.125, 0.375, None)]
        [('−0.125', 'worse'), ('+0.125', 'better'), ('–', '')]
    """
    if first is None or second is None:
        return Difference(NONE, "")
    by = second - first
    if abs(by) < 0.0005:  # zero in three decimals
        return Difference("0.000", "same")
    return Difference(f"{'+' if by > 0 else MINUS}{abs(by):.3f}", "better" if (by < 0) == lower else "worse")


def rows(metrics: Sequence[Values]) -> list[Row]:
    """Return a row for each metric of any evaluation, in the order of the metrics."""
    table = []
    for metric in dict.fromkeys(metric for each in metrics for metric in each):
        values = [each.get(metric) for each in metrics]
        lower = metric in LOWER_IS_BETTER
        change = difference(*values, lower=lower) if len(values) == 2 else None
        table.append(Row(named(metric), [format_number(value) for value in values], change, lower))
    return table


def summary(sections: Sequence[Sections]) -> list[tuple[str, str, list[Row]]]:
    """Return the main metrics of the sections: a title, an anchor of the page, and a few rows for each."""
    table = []
    shown = ("precision_at_1", "mean_average_precision_at_r", "knn_accuracy", "top1", "top5")
    for title, name in (("Retrieval", "retrieval"), ("Linear probe", "linear_probe")):
        metrics = [part_of(each, name, "metrics") for each in sections]
        values = [{metric: each[metric] for metric in shown if metric in each} for each in metrics]
        table.append((title, name.replace("_", "-"), rows(values)))
    for when in ("before", "after"):
        metrics = [part_of(each, "calibration", when) for each in sections]
        values = [{"ece": each["ece"]} if each else {} for each in metrics]
        table.append((f"Calibration, {when} temperature scaling", "calibration", rows(values)))
    table.append(("Corruption", "corruption", rows([corruption_values(each.corruption) for each in sections])))
    return [part for part in table if part[2]]


def corruption_values(section: CorruptionSection | None) -> dict[str, float]:
    """Return the mean errors under corruption; the mCE only if there is a baseline."""
    if section is None:
        return {}
    mce = section.mean_corruption_error
    return {"mean_error": section.mean_error} | ({} if mce is None else {"mean_corruption_error": mce})


def part_of(sections: Sections, section: str, part: str) -> Any:
    """Return a part of a section, or an empty dict if the section was not evaluated."""
    return getattr(getattr(sections, section), part, {})


def class_table(sections: Sequence[Sections], classes: Sequence[str], letters: Sequence[str]) -> ClassTable | None:
    """Return the retrieval metrics and the probe's accuracy by class, worst first by the first metric of the first.

    Only the metrics in `CLASS_METRICS` are shown, so that the table fits the page.
    """
    by_class = [_by_class(each) for each in sections]
    metrics = [
        metric for metric in CLASS_METRICS if any(metric in values for each in by_class for values in each.values())
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
        per = [each.get(name, {}) for each in by_class]
        queries = next((values["queries"] for values in per if "queries" in values), None)
        cells = [Cell(format_number(queries), queries)]
        for metric in metrics:
            values = [each.get(metric) for each in per]
            cells += [Cell(format_number(value), value) for value in values]
            if two:
                first, second = values
                by = None if first is None or second is None else second - first
                cells.append(Cell(difference(first, second, lower=False).text, by))
        table.append((name, cells))
    table.sort(key=lambda row: math.inf if row[1][1].value is None else row[1][1].value)
    return ClassTable(columns, table, columns[1])


def _by_class(sections: Sections) -> dict[str, dict[str, float | None]]:
    merged = {name: dict(values) for name, values in part_of(sections, "retrieval", "per_class").items()}
    for name, value in part_of(sections, "linear_probe", "per_class").items():
        merged.setdefault(name, {})["linear_probe"] = value
    return merged


def about(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[str]]]:
    """Return the versions, device and seconds of the evaluations, by name."""
    names = dict.fromkeys(name for each in evaluations for name in each.about)
    return [(name, [as_text(each.about.get(name)) for each in evaluations]) for name in names]


def as_text(value: Any) -> str:
    """Format a JSON value as text.

    Examples:
        >>> as_text({"map": 1.25, "parts": [1, None]})
        'map 1.250, parts 1 –'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {as_text(item)}" for name, item in value.items()) or NONE
    if isinstance(value, list | tuple):
        return " ".join(map(as_text, value)) or NONE
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return format_number(value)
    return str(value)
