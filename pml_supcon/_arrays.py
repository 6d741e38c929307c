"""Checks at the public edge of the testers: torch tensors on any device and numpy arrays come in."""

from collections.abc import Iterator
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Array: TypeAlias = torch.Tensor | npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Labels: TypeAlias = npt.NDArray[np.int64]

PART_ROWS = 8192  # looked at together where a comparison or a difference makes a copy


def as_embeddings(value: Array, name: str, *, dtype: type[np.floating[Any]] | None = None) -> Floats:
    """Check a non-empty, finite ``(N, D)`` matrix of floats; return it on the CPU, in ``dtype`` or its own.

    Half precision is widened to float32: numpy has no bfloat16, and scikit-learn does not compute in either.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach()
        matrix = (value.float() if value.dtype in (torch.float16, torch.bfloat16) else value).cpu().numpy()
    elif isinstance(value, np.ndarray):
        matrix = value.astype(np.float32) if value.dtype == np.float16 else value
    else:
        raise TypeError(_expected(name, "a torch tensor or a numpy array", type(value).__name__))
    if not np.issubdtype(matrix.dtype, np.floating):
        raise TypeError(_expected(name, "floating point", str(value.dtype)))
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(_expected(name, "a non-empty (N, D) matrix", f"shape {tuple(matrix.shape)}"))
    if dtype is not None:
        with np.errstate(over="ignore"):  # what overflows is told below, as infinity
            matrix = matrix.astype(dtype, copy=False)
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        found = f"NaN or infinity in {len(bad)} of {len(matrix)} rows (the first is row {bad[0]})"
        raise ValueError(_expected(name, "finite", found))
    return matrix


def as_labels(value: Array, name: str, rows: int) -> Labels:
    """Check ``rows`` integer labels; return them on the CPU as int64 ``(N,)``, whatever their size."""
    if not isinstance(value, torch.Tensor | np.ndarray):
        raise TypeError(_expected(name, "a torch tensor or a numpy array", type(value).__name__))
    labels = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(_expected(name, "integers", str(value.dtype)))
    if labels.shape != (rows,):
        raise ValueError(_expected(name, f"one per embedding, shape ({rows},)", f"shape {tuple(labels.shape)}"))
    if labels.dtype == np.uint64 and labels.max() > np.iinfo(np.int64).max:
        raise ValueError(_expected(name, "within the range of int64", str(labels.max())))
    return labels.astype(np.int64, copy=False)


def parts_of(rows: int) -> Iterator[slice]:
    """Slices of ``PART_ROWS`` rows, one after the other."""
    return (slice(start, start + PART_ROWS) for start in range(0, rows, PART_ROWS))


def check_same_width(first: Floats, first_name: str, second: Floats, second_name: str) -> None:
    """Raise ``ValueError`` unless both ``(., D)`` matrices have the same D."""
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"Expected arguments `{first_name}` and `{second_name}` to have the same width, but got shapes "
            f"{first.shape} and {second.shape}."
        )


def count_zero_rows(value: Array) -> int:
    """Rows of a ``(N, D)`` matrix that are zero throughout."""
    return int((value == 0).all(1).sum())


def check_count(value: object, name: str) -> None:
    """Raise unless ``value`` is an integer above zero."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(_expected(name, "an integer", f"{value!r}"))
    if value <= 0:
        raise ValueError(_expected(name, "at least 1", f"{value!r}"))


def check_positive(value: float, name: str) -> None:
    """Raise unless ``value`` is a number above zero (infinity is one, NaN is not)."""
    if not isinstance(value, int | float | np.number) or isinstance(value, bool):
        raise TypeError(_expected(name, "a number", f"{value!r}"))
    if not value > 0:
        raise ValueError(_expected(name, "above 0", f"{value!r}"))


def _expected(name: str, wanted: str, got: str) -> str:
    return f"Expected argument `{name}` to be {wanted}, but got {got}."


def check_share(value: float, name: str, *, whole: bool = False) -> None:
    """Raise unless ``value`` is a number above 0 and below 1, or 1 where the ``whole`` is a share."""
    if not isinstance(value, int | float | np.number) or isinstance(value, bool):
        raise TypeError(f"Expected argument `{name}` to be a number, but got {value!r}.")
    if not (0 < value < 1 or (whole and value == 1)):
        wanted = "above 0 and at most 1" if whole else "between 0 and 1"
        raise ValueError(f"Expected argument `{name}` to be {wanted}, but got {value!r}.")


def check_seed(value: int) -> None:
    """Raise unless ``value`` is an integer, at least 0."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"Expected argument `seed` to be an integer, but got {value!r}.")
    if value < 0:
        raise ValueError(f"Expected argument `seed` to be at least 0, but got {value!r}.")
