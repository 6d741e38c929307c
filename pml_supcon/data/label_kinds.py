"""The kinds of labels of a data set, and the classes in them."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

LabelsAre = Literal["classes", "sets", "soft", "hierarchy", "numbers"]
WITH_CLASSES = ("classes", "hierarchy")  # each image has one class
SHOWN = 10  # classes named in a summary


def classes_of(labels: Tensor) -> Tensor | None:
    """Return the class of each image, or None if the labels hold none.

    Args:
        labels: Classes ``(n,)`` or a hierarchy ``(n, L)``, int64; sets ``(n, C)`` bool; soft labels ``(n, C)`` or
            numbers ``(n,)`` or ``(n, K)``, float32.

    Returns:
        The classes, or the finest level of the hierarchy, int64 ``(n,)``.
    """
    if labels.dtype != torch.int64:
        return None
    return labels if labels.ndim == 1 else labels[:, -1]


def has_new_classes(train: Tensor, test: Tensor) -> bool:
    """Return True if no test image has a class of training, as in zero-shot retrieval; False without classes."""
    known, tested = classes_of(train), classes_of(test)
    return known is not None and tested is not None and not bool(torch.isin(tested, known).any())


def label_at(labels: Tensor, index: int) -> int | Tensor:
    """Return one label as an item of a data set: an integer for a class, else a tensor."""
    if labels.ndim == 1 and labels.dtype == torch.int64:
        return int(labels[index])
    return labels[index]


def colours_of(labels: Tensor, labels_are: LabelsAre, names: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Return one value of each image by which a map is coloured, ``(n,)``, and the names of the values.

    The value is the class, the finest level of a hierarchy, the first label of a set (an empty set has a name of its
    own), the largest share of a soft label, or the first number, float32, which has no names.
    """
    if labels_are == "numbers":
        return labels.reshape(len(labels), -1)[:, 0], ()
    if labels_are == "soft":
        return labels.argmax(1), tuple(names)
    if labels_are == "sets":
        first = labels.int().argmax(1)  # the first of equal values
        return torch.where(labels.any(1), first, len(names)), (*names, "no label")
    classes = classes_of(labels)
    assert classes is not None  # for the type checker
    return classes, tuple(names)


def describe_labels(labels: Tensor, labels_are: LabelsAre, names: Sequence[str]) -> str:
    """Describe the labels of the training images in one line: their kind, and the images of each class.

    ``names`` are printable.

    Examples:
        >>> describe_labels(torch.tensor([[True, True], [False, True]]), "sets", ["red", "round"])
        'sets of 2 labels, 1.5 an image (red 1, round 2)'
        >>> describe_labels(torch.tensor([20.0, 35.5]), "numbers", [])
        'numbers (20 to 35.5)'
    """
    if labels_are == "numbers":
        columns = labels.reshape(len(labels), -1).T
        return f"numbers ({', '.join(f'{column.min():g} to {column.max():g}' for column in columns)})"
    classes = classes_of(labels)
    counts = labels.sum(0) if classes is None else classes.bincount(minlength=len(names))
    kind = {
        "classes": f"{len(names)} classes",
        "sets": f"sets of {len(names)} labels, {float(counts.sum()) / len(labels):.2g} an image",
        "soft": f"shares of {len(names)} classes",
        "hierarchy": f"a hierarchy of {_sizes(labels)} classes",
    }[labels_are]
    pairs = list(zip(names, counts.tolist(), strict=True))
    shown = ", ".join(f"{name} {count:.6g}" for name, count in pairs[:SHOWN])
    if len(names) > SHOWN:
        shown += f", and {len(names) - SHOWN} more; {float(counts.min()):.6g} to {float(counts.max()):.6g} images each"
    return f"{kind} ({shown})"


def _sizes(levels: Tensor) -> str:
    return ", ".join(str(len(level.unique())) for level in levels.reshape(len(levels), -1).T)
