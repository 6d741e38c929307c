"""Labels from the columns of a Hugging Face data set: classes, sets, soft labels, hierarchies and numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pml_supcon.data.label_kinds import LabelsAre
from pml_supcon.data.label_values import EXPECTED, Column, SplitLabels, element_of, encode, listing, read_matrix

_LABEL_NAMES = ("label", "labels", "target", "fine_label")
#: The largest rounding error of numbers in float32, as a share of their standard deviation.
_ROUNDING = 1e-3


def choose_columns(named: str | None, features: Mapping[str, Any], labels_are: LabelsAre) -> list[str]:
    """Return the columns of the labels: those that ``?label=`` names, else the only ones that fit.

    Raises:
        ValueError: If no column fits, or several do.
    """
    if named is not None:
        return [named] if named in features else named.split(",")
    if labels_are == "classes":
        return [_label_column(features)]
    if labels_are == "hierarchy":
        raise ValueError(
            f"Expected `hf:...?label=COARSE,FINE` with --labels hierarchy, {EXPECTED['hierarchy']}; the columns are "
            f"{', '.join(features)}"
        )
    fits: Callable[[Any], bool] = {
        "sets": lambda feature: element_of(feature) is not None,
        "soft": lambda feature: element_of(feature) is not None and _is_number(element_of(feature)),
        "numbers": _is_number,
    }[labels_are]
    found = [name for name, feature in features.items() if fits(feature)]
    preferred = [name for name in _LABEL_NAMES if name in found] or found
    if len(found) != 1 and len(preferred) != 1:
        raise ValueError(
            f"Expected {EXPECTED[labels_are]} with --labels {labels_are}, but {len(found)} of the columns "
            f"{', '.join(features)} fit (`hf:...?label=COLUMN,...` names them)"
        )
    return preferred


def read_labels(
    splits: Mapping[str, Any], columns: Sequence[str], labels_are: LabelsAre
) -> tuple[tuple[str, ...], dict[str, SplitLabels]]:
    """Return the class names (see ``ImageData``) and the labels of each split.

    Args:
        splits: Data sets of ``datasets``, the training split first.
        columns: Names of columns.
        labels_are: The kind of the labels.

    Raises:
        ValueError: If the values do not fit the kind of the labels.
    """
    features = next(iter(splits.values())).features
    read = [
        Column(
            name, features[name], {split: list(rows.select_columns([name])[:][name]) for split, rows in splits.items()}
        )
        for name in columns
    ]
    if labels_are == "classes" and len(read) > 1:
        raise ValueError(
            f"Expected one column of labels, but got {', '.join(columns)}; --labels says what several are: sets, soft, "
            "hierarchy or numbers"
        )
    readers = {"classes": _classes, "sets": _sets, "soft": _soft, "hierarchy": _hierarchy, "numbers": _numbers}
    return readers[labels_are](read)


def _classes(columns: Sequence[Column]) -> tuple[tuple[str, ...], dict[str, SplitLabels]]:
    """Return the class names and the labels 0..C-1 of the only column, the training split first."""
    names, codes = encode(columns[0])
    labels = {split: torch.tensor(each, dtype=torch.long) for split, each in codes.items()}
    return names, {split: SplitLabels(each, each < 0) for split, each in labels.items()}


def _sets(columns: Sequence[Column]) -> tuple[tuple[str, ...], dict[str, SplitLabels]]:
    element = element_of(columns[0].feature)
    if len(columns) == 1 and element is not None and not _is_multi_hot(columns[0], element):
        return _listed_sets(columns[0], element)
    if len(columns) == 1 and element is None:
        raise ValueError(
            f"Expected {EXPECTED['sets']} with --labels sets, but {columns[0].name} is one column of "
            f"{_type_name(columns[0].feature)} (`metadata.jsonl` and Parquet hold lists)"
        )
    names, labels = read_matrix(columns, "sets")
    for split, (values, _) in labels.items():
        if bool(((values != 0) & (values != 1)).any()):
            raise ValueError(
                f"Expected zeros and ones in {listing(columns)} with --labels sets, but {split} has other values; "
                "--labels soft takes shares"
            )
    return names, {split: SplitLabels(values.bool(), missing) for split, (values, missing) in labels.items()}


def _listed_sets(column: Column, element: Any) -> tuple[tuple[str, ...], dict[str, SplitLabels]]:
    """Return the sets of a column of lists of names, ids or ClassLabel."""
    values = {value for rows in column.values.values() for row in rows for value in row or ()}
    if not all(isinstance(value, int | str) for value in values):
        raise ValueError(
            f"Expected lists of names, of integers or of zeros and ones in {column.name} with --labels sets, but got "
            f"lists of {_type_name(element)}; --labels soft takes shares"
        )
    lists = [row for rows in column.values.values() for row in rows if row is not None]
    if not hasattr(element, "names") and values <= {0, 1} and any(len(set(row)) < len(row) for row in lists):
        lengths = sorted({len(row) for row in lists})
        raise ValueError(
            f"Expected lists of one length of zeros and ones, or lists of ids without repeats, in {column.name} with "
            f"--labels sets, but got lengths {lengths}"
        )
    if hasattr(element, "names"):  # ClassLabel
        if not values <= set(range(len(element.names))):
            raise ValueError(f"Expected labels of {', '.join(element.names)} in {column.name}, but got {min(values)}")
        names, code = tuple(element.names), {index: index for index in range(len(element.names))}
    else:
        known = sorted(values)
        names, code = tuple(map(str, known)), {value: index for index, value in enumerate(known)}
    if not values:
        raise ValueError(f"Expected labels in the lists of {column.name}, but all are empty")
    found = {}
    for split, rows in column.values.items():
        labels = torch.zeros(len(rows), len(names), dtype=torch.bool)
        pairs = [(place, code[value]) for place, row in enumerate(rows) for value in row or ()]
        if pairs:
            labels[tuple(torch.tensor(pairs).T)] = True
        found[split] = SplitLabels(labels, torch.tensor([row is None for row in rows]))
    return names, found


def _soft(columns: Sequence[Column]) -> tuple[tuple[str, ...], dict[str, SplitLabels]]:
    names, labels = read_matrix(columns, "soft")
    if len(names) < 2:
        raise ValueError(f"Expected {EXPECTED['soft']} with --labels soft, but {columns[0].name} has one share a row")
    found = {}
    for split, (values, missing) in labels.items():
        if bool((values < 0).any()):
            raise ValueError(
                f"Expected shares >= 0 in {listing(columns)} with --labels soft, but {split} has {values.min():g}"
            )
        shares = values.float()
        if bool((~missing & (shares.amax(1) == 0)).any()):
            row = int((~missing & (shares.amax(1) == 0)).nonzero()[0])
            raise ValueError(
                f"Expected a share above 0 in every row of {listing(columns)} with --labels soft, but row {row} of "
                f"{split} has none"
            )
        found[split] = SplitLabels(shares, missing)
    return names, found


def _numbers(columns: Sequence[Column]) -> tuple[tuple[str, ...], dict[str, SplitLabels]]:
    _, labels = read_matrix(columns, "numbers")
    found = {}
    for split, (values, missing) in labels.items():
        there = values[~missing]
        rounding = (there - there.float().double()).abs().amax(0) if len(there) else there.new_zeros(())
        if bool((rounding > _ROUNDING * there.std(0, correction=0)).any()):
            raise ValueError(
                f"Expected numbers in {listing(columns)} that float32 tells apart, but those of {split} are large and "
                "near to each other: subtract their mean first"
            )
        single = len(columns) == 1 and element_of(columns[0].feature) is None
        found[split] = SplitLabels(values.float()[:, 0] if single else values.float(), missing)
    return (), found


def _hierarchy(columns: Sequence[Column]) -> tuple[tuple[str, ...], dict[str, SplitLabels]]:
    """Return the levels: a label of a level is a path from the coarsest level, so that its id has one branch."""
    if len(columns) < 2:
        raise ValueError(
            f"Expected `hf:...?label=COARSE,FINE` with --labels hierarchy, {EXPECTED['hierarchy']}, but got "
            f"{columns[0].name} alone"
        )
    coded = [encode(column) for column in columns]
    paths = {split: list(zip(*(codes[split] for _, codes in coded), strict=True)) for split in columns[0].values}
    names: tuple[str, ...] = ()
    levels: dict[str, list[Tensor]] = {split: [] for split in paths}
    for depth in range(1, len(columns) + 1):
        known = sorted({path[:depth] for rows in paths.values() for path in rows if min(path) >= 0})
        code = {path: index for index, path in enumerate(known)}
        for split, rows in paths.items():
            levels[split].append(torch.tensor([code.get(path[:depth], 0) for path in rows], dtype=torch.long))
        names = tuple("/".join(coded[level][0][label] for level, label in enumerate(path)) for path in known)
    missing = {split: torch.tensor([min(path) < 0 for path in rows]) for split, rows in paths.items()}
    return names, {split: SplitLabels(torch.stack(each, dim=1), missing[split]) for split, each in levels.items()}


def _is_number(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return ("int" in kind or "float" in kind) and not hasattr(feature, "names")


def _is_multi_hot(column: Column, element: Any) -> bool:
    """Return True for lists of one length above 1 that hold zeros and ones alone: as ids, all would be equal."""
    if hasattr(element, "names"):
        return False
    rows = [row for each in column.values.values() for row in each if row is not None]
    return len({len(row) for row in rows}) == 1 and len(rows[0]) > 1 and {v for row in rows for v in row} <= {0, 1}


def _type_name(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or feature)


def _label_column(features: Mapping[str, Any]) -> str:
    classes = [name for name, feature in features.items() if hasattr(feature, "names")]
    kinds = {name: str(getattr(feature, "dtype", "")) for name, feature in features.items()}
    numbers = [name for name, kind in kinds.items() if "int" in kind]
    texts = [name for name in _LABEL_NAMES if kinds.get(name) in ("string", "large_string", "bool")]
    for found in (classes, numbers, texts):
        named = [name for name in _LABEL_NAMES if name in found]
        if named or len(found) == 1:
            return str((named or found)[0])
        if found:
            raise ValueError(
                f"Expected one column of labels, but got {', '.join(found)} (`hf:...?label=COLUMN` names one)"
            )
    raise ValueError(
        f"Expected a column of labels (ClassLabel or integers, or strings named {', '.join(_LABEL_NAMES)}), but the "
        f"columns are {', '.join(features)} (`hf:...?label=COLUMN` names one)"
    )
