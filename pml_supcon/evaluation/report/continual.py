"""The report of a run of continual learning: the accuracy on each task after each task, as tables of coloured cells.

It is part of ``evaluation``, whose style sheet and templates it takes; ``training`` imports nothing from there. The
recipe calls it after the run.
"""

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from pml_supcon._checks import shown
from pml_supcon._files import check_file
from pml_supcon.evaluation.report import tables
from pml_supcon.evaluation.report.template import write_page

RECORD, REPORT = "continual.json", "report.html"
#: The matrices of a record, their titles, and the classes that compete.
MATRICES = {
    "class_il": ("Class-IL", "The classes of all tasks so far compete."),
    "task_il": ("Task-IL", "Only the classes of the image's own task compete."),
}
KINDS: dict[str, type] = {
    **{"method": str, "scenario": str, "tasks": list, **dict.fromkeys(MATRICES, list)},
    **{"average_accuracy": dict, "forgetting": dict, "settings": dict},
}
SCORES = ("average_accuracy", "forgetting")


class Row(NamedTuple):
    """The accuracies after a task, None for a task that was not scored, and their mean."""

    task: str
    values: list[float | None]
    mean: float | None


def write_continual_report(folder: Path) -> Path:
    """Write ``report.html`` beside ``continual.json`` in the folder of a run.

    Args:
        folder: The folder. Its ``continual.json`` has ``method`` and ``scenario`` (strings), ``tasks`` (a list of class
            names for each of T tasks), ``class_il`` and ``task_il`` (``T x T`` accuracies in [0, 1]: row t after
            training on task t, column k of task k, null where no accuracy was measured, as for k > t),
            ``average_accuracy`` and ``forgetting`` (each a number, or null, for ``class_il`` and ``task_il``) and
            ``settings``.

    Returns:
        The path of the report, which is replaced as a whole.

    Raises:
        FileNotFoundError: If there is no ``continual.json``.
        ValueError: If it is no such record.
    """
    record = read_record(folder / RECORD)
    names = [f"{place}: {', '.join(classes)}" for place, classes in enumerate(record["tasks"], start=1)]
    summary = [
        tables.Row(tables.named(score), [tables.format_number(record[score][name]) for name in MATRICES], None, lower)
        for score, lower in zip(SCORES, (False, True), strict=True)
    ]
    content = {
        "title": f"{record['method']}: {len(names)} tasks, scenario {record['scenario']}",
        "names": names,
        "titles": [title for title, _ in MATRICES.values()],
        "summary": summary,
        "matrices": [(name.replace("_", "-"), *MATRICES[name], matrix_rows(names, record[name])) for name in MATRICES],
        "settings": [(name, tables.as_text(value)) for name, value in record["settings"].items()],
    }
    write_page(folder / REPORT, "continual.html.j2", content)
    return folder / REPORT


def matrix_rows(names: list[str], matrix: list[list[float | None]]) -> list[Row]:
    """Return the rows of a matrix with the mean of each row's accuracies."""
    known = [[value for value in row if value is not None] for row in matrix]
    means = [statistics.fmean(values) if values else None for values in known]
    return [Row(*each) for each in zip(names, matrix, means, strict=True)]


def read_record(path: Path) -> dict[str, Any]:
    """Read and check the record of a run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON, or no record of continual learning; the error names the part.
    """
    check_file(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Expected {path} to be JSON, but {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"Expected {path} to be a JSON object, but got {shown(record)}")
    for name, kind in KINDS.items():
        _check(path, name, isinstance(record.get(name), kind), f"a {kind.__name__}", record.get(name))
    tasks = record["tasks"]
    named = bool(tasks) and all(isinstance(task, list) and task and set(map(type, task)) == {str} for task in tasks)
    _check(path, "tasks", named, "a list of class names for each task", tasks)
    for name in MATRICES:
        rows = record[name]
        square = len(rows) == len(tasks) and all(isinstance(row, list) and len(row) == len(tasks) for row in rows)
        _check(path, name, square, f"{len(tasks)} rows of {len(tasks)}, one for each task", rows)
        for t, row in enumerate(rows):
            for k, value in enumerate(row):
                _check(
                    path, f"{name}[{t}][{k}]", value is None or (k <= t and _is_accuracy(value)), _wanted(t, k), value
                )
        for score in SCORES:
            number = record[score].get(name)
            good = number is None or (isinstance(number, float | int) and -1 <= number <= 1)
            _check(path, f"{score}.{name}", name in record[score] and good, "a number in [-1, 1] or null", number)
    return record


def _is_accuracy(value: Any) -> bool:
    return isinstance(value, float | int) and 0 <= value <= 1


def _wanted(t: int, k: int) -> str:
    return "an accuracy in [0, 1] or null" if k <= t else "null, because task k > t follows"


def _check(path: Path, name: str, good: bool, wanted: str, got: Any) -> None:
    if not good:
        raise ValueError(f"Expected `{name}` of {path} to be {wanted}, but got {shown(got)}")
