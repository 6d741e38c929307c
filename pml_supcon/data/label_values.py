"""The values in columns of labels: classes as codes, numbers as a matrix."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pml_supcon.data.label_kinds import LabelsAre

#: The columns that each kind of labels needs, for errors.
EXPECTED = {
    "classes": "a column of labels (ClassLabel, integers or strings)",
    "sets": "a column of lists (of names, or of zeros and ones), or several columns of zeros and ones",
    "soft": "a column of lists of shares, or several columns of numbers",
    "hierarchy": "several columns of classes, from coarse to fine",
    "numbers": "a column of numbers, or several",
}


class SplitLabels(NamedTuple):
    """The labels of the rows of a split, ``(n, ...)``; True in ``missing`` ``(n,)`` where a row has no label."""

    labels: Tensor
    missing: Tensor


class Column(NamedTuple):
    """A column: its name, the type of its values, and the values of each split, the training split first."""

    name: str
    feature: Any
    values: dict[str, list[Any]]


def read_matrix(columns: Sequence[Column], labels_are: LabelsAre) -> tuple[tuple[str, ...], dict[str, SplitLabels]]:
    """Return the finite numbers of columns, or of one column of lists, float64 ``(n, C)``, and the name of each."""
    expected, listed = f"{EXPECTED[labels_are]} with --labels {labels_are}", element_of(columns[0].feature) is not None
    if len(columns) > 1 and any(element_of(column.feature) is not None for column in columns):
        raise ValueError(f"Expected {expected}, but got several columns, of which some hold lists: {listing(columns)}")
    rows: dict[str, list[Sequence[float] | None]] = {}
    for split, first in columns[0].values.items():
        read = first if listed else zip(*(each.values[split] for each in columns), strict=True)
        rows[split] = [None if row is None or None in row else row for row in read]
    there = [row for each in rows.values() for row in each if row is not None]
    kinds = {bool, int, float} if labels_are == "sets" else {int, float}
    wrong = [value for row in there for value in row if type(value) not in kinds or not math.isfinite(value)]
    if wrong:
        raise ValueError(f"Expected {expected}, all finite, but {listing(columns)} has the value {wrong[0]!r}")
    widths = sorted({len(row) for row in there})
    if len(widths) != 1 or widths[0] == 0:
        raise ValueError(
            f"Expected lists of one length in {listing(columns)} with --labels {labels_are}, but got {widths}"
        )
    names = tuple(map(str, range(widths[0]))) if listed else tuple(column.name for column in columns)
    return names, {
        split: SplitLabels(
            torch.tensor([[0.0] * widths[0] if row is None else row for row in each], dtype=torch.float64),
            torch.tensor([row is None for row in each]),
        )
        for split, each in rows.items()
    }


def encode(column: Column) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Return the class names and the labels 0..C-1 of each split, the training split first; -1 is no label."""
    if hasattr(column.feature, "names"):  # ClassLabel
        coded = {
            split: [-1 if value is None else int(value) for value in values] for split, values in column.values.items()
        }
        return tuple(column.feature.names), coded
    # -1 is a hidden label, unless training images have it
    hidden = (None,) if -1 in next(iter(column.values.values())) else (None, -1)
    values = [value for each in column.values.values() for value in each if value not in hidden]
    if not all(isinstance(value, int | str) for value in values):
        raise ValueError(
            f"Expected labels that are classes, integers or strings, but got a column of {column.feature} (--labels "
            "says what labels are: classes, sets, soft, hierarchy or numbers)"
        )
    known = sorted(set(values))
    code = {value: index for index, value in enumerate(known)}
    return tuple(map(str, known)), {n: [code.get(value, -1) for value in each] for n, each in column.values.items()}


def element_of(feature: Any) -> Any:
    """Return the type of the values of a column of lists, or None for another column."""
    if isinstance(feature, list):  # as older data sets describe lists
        return feature[0]
    return getattr(feature, "feature", None)


def listing(columns: Sequence[Column]) -> str:
    """Return the names of the columns, for an error."""
    return ", ".join(column.name for column in columns)
