"""Labels as arrays of NumPy, checked: classes, label sets and trees."""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from pml_supcon._checks import check_choice, check_nested, shown
from pml_supcon._tensors import check_dense

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Labels = Sequence[Any] | npt.NDArray[Any] | torch.Tensor
LabelsAre = Literal["classes", "sets", "hierarchy"]


def read_labels(labels: Labels, labels_are: LabelsAre) -> npt.NDArray[Any]:
    """Return checked labels: int64 codes ``0, 1, ...`` of a column's labels, or bool where the labels are sets.

    Args:
        labels: Labels of n samples, as ``MultiViewBatchSampler`` describes them.
        labels_are: Meaning of the labels.

    Returns:
        ``(n,)`` int64 for classes, ``(n, L)`` int64 for a hierarchy, ``(n, C)`` bool for sets.

    Raises:
        TypeError: If the labels have another type.
        ValueError: If their shape or their values do not fit ``labels_are``.

    Examples:
        >>> read_labels([7, 5, 7], "classes")
        array([1, 0, 1])
    """
    check_choice("labels_are", labels_are, get_args(LabelsAre))
    array = _as_array(labels, sets=labels_are == "sets")
    if labels_are == "classes":
        if array.ndim != 1 or not array.size:
            hint = "; name the meaning of two dimensions: labels_are='sets' or 'hierarchy'" if array.ndim == 2 else ""
            raise ValueError(f"Expected argument `labels` to be 1-D and not empty, but got shape {array.shape}{hint}")
        return _codes(array)
    if array.ndim != 2 or not array.size:
        shape = "(n, C)" if labels_are == "sets" else "(n, L)"
        raise ValueError(
            f"Expected argument `labels` to have the shape {shape} and not be empty where labels_are={labels_are!r}, "
            f"but got shape {array.shape}"
        )
    if labels_are == "sets":
        if array.dtype != bool and not np.isin(array, (0, 1)).all():
            other = array[~np.isin(array, (0, 1))][0]
            raise ValueError(f"Expected argument `labels` to be bool, or 0 and 1, where they are sets, but got {other}")
        return np.ascontiguousarray(array, dtype=bool)
    check_nested(torch.from_numpy(array.astype(np.int64)))
    return np.stack([_codes(column) for column in array.T], axis=1)


def labels_digest(labels: npt.NDArray[Any]) -> str:
    """Return a digest of checked labels: equal if and only if all samples have the same codes or sets, in order."""
    columns = labels.shape[1:]  # bytes alone do not tell (6, 2) from (4, 3)
    return hashlib.sha256(np.array(columns, dtype=np.int64).tobytes() + labels.tobytes()).hexdigest()


def hierarchy_classes(levels: IntArray, least: int) -> IntArray:
    """Return one class of each sample, ``(n,)``: its label on the finest level on which ``least`` samples share it.

    Samples of labels with fewer than ``least`` samples join those of their parent that have the same lack, and so on
    up the tree. What the coarsest level leaves over is in classes of fewer than ``least`` samples.

    Args:
        levels: ``(n, L)`` int64 codes, coarse to fine, nested.
        least: Samples of a class, ``>= 1``.

    Examples:
        >>> hierarchy_classes(np.array([[0, 0], [0, 0], [0, 1], [0, 2], [1, 3]]), least=2)
        array([0, 0, 1, 1, 2])
    """
    classes, used = np.full(len(levels), -1), 0
    for level in reversed(range(levels.shape[1])):
        # (n,): the samples without a class so far, and how many of them share the label of this level
        column, free = levels[:, level], classes < 0
        shared = np.bincount(column[free], minlength=int(column.max()) + 1)[column]
        found = free & (shared >= (least if level else 1))
        classes[found] = used + column[found]
        used += int(column.max()) + 1
    return _codes(classes)


def _as_array(labels: Labels, *, sets: bool) -> npt.NDArray[Any]:
    """Return the labels as an array of integers; sets may also be of bool or floats, as for ``targets.LabelSets``."""
    kinds, expected = ("biuf", "bool, or 0 and 1") if sets else ("iu", "integers")
    if isinstance(labels, Sampler):
        raise TypeError(
            f"Expected argument `labels` to be the labels of the samples, but got a {type(labels).__name__}; Lightning "
            "puts one there unless it runs with `Trainer(use_distributed_sampler=False)`"
        )
    if isinstance(labels, torch.Tensor):
        check_dense("labels", labels)
        if sets and labels.is_floating_point():
            labels = labels.double()
        if (labels.is_floating_point() and not sets) or labels.is_complex():  # NumPy lacks some of these dtypes
            raise TypeError(f"Expected argument `labels` to be {expected}, but got {labels.dtype}")
        array = labels.detach().cpu().numpy()
    else:
        try:
            array = np.asarray(labels)
        except (TypeError, ValueError, OverflowError) as error:  # ragged, or no numbers
            raise TypeError(f"Expected argument `labels` to be {expected}, but got {shown(labels)}") from error
    if array.size and array.dtype.kind not in kinds:
        hint = "; bool rows are labels_are='sets'" if array.dtype == bool and array.ndim == 2 else ""
        raise TypeError(f"Expected argument `labels` to be {expected}, but got dtype {array.dtype}{hint}")
    return array


def _codes(labels: npt.NDArray[Any]) -> IntArray:
    """Return ``(n,)`` labels as int64 codes ``0..C-1``."""
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
