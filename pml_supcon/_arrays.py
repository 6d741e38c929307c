"""Checks of array arguments: torch tensors on any device and numpy arrays come in, numpy arrays go out."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from pml_supcon._checks import shown
from pml_supcon._tensors import FLOATS, check_dense

Array: TypeAlias = torch.Tensor | npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Labels: TypeAlias = npt.NDArray[np.int64]

BLOCK_ROWS = 8192  # rows compared at once, where the comparison makes a copy


def as_embeddings(value: Array, name: str, *, dtype: type[np.floating[Any]] | None = None) -> Floats:
    """Check a non-empty, finite ``(N, D)`` matrix of floats; return it on the CPU, in ``dtype`` or its own.

    Half precision becomes float32: numpy has no bfloat16, and scikit-learn computes in neither.
    """
    matrix = as_numpy(value, name)
    if not np.issubdtype(matrix.dtype, np.floating):
        raise TypeError(_expected(name, "floating point", str(value.dtype)))
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(_expected(name, "a non-empty (N, D) matrix", f"shape {tuple(matrix.shape)}"))
    if dtype is not None:
        with np.errstate(over="ignore"):  # an overflow is infinity, which is rejected below
            matrix = matrix.astype(dtype, copy=False)
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        found = f"NaN or infinity in {len(bad)} of {len(matrix)} rows (the first is row {bad[0]})"
        raise ValueError(_expected(name, "finite", found))
    return matrix


def as_labels(value: Array, name: str, rows: int) -> Labels:
    """Check ``rows`` integer labels of any size; return them on the CPU as int64 ``(N,)``."""
    labels = as_numpy(value, name)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(_expected(name, "integers", str(value.dtype)))
    if labels.shape != (rows,):
        raise ValueError(_expected(name, f"one per embedding, shape ({rows},)", f"shape {tuple(labels.shape)}"))
    if labels.dtype == np.uint64 and labels.max() > np.iinfo(np.int64).max:
        raise ValueError(_expected(name, "within the range of int64", str(labels.max())))
    return labels.astype(np.int64, copy=False)


def check_same_width(first: Floats, first_name: str, second: Floats, second_name: str) -> None:
    """Raise ``ValueError`` unless both ``(., D)`` matrices have the same D."""
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"Expected arguments `{first_name}` and `{second_name}` to have the same width, but got shapes "
            f"{first.shape} and {second.shape}"
        )


def check_sequence(name: str, value: object, kind: str) -> None:
    """Raise ``TypeError`` unless the value is a sequence, other than a string; ``kind`` names its items."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(_expected(name, f"a sequence of {kind}", shown(value)))


def count_zero_rows(value: Array) -> int:
    """Count the rows of a ``(N, D)`` matrix whose values are all zero."""
    return int((value == 0).all(1).sum())


def row_blocks(rows: int) -> Iterator[slice]:
    """Return consecutive slices of at most ``BLOCK_ROWS`` rows."""
    return (slice(start, start + BLOCK_ROWS) for start in range(0, rows, BLOCK_ROWS))


def as_numpy(value: Array, name: str) -> npt.NDArray[Any]:
    """Check a dense tensor or an array; return it on the CPU, in a layout that torch and FAISS take."""
    if isinstance(value, torch.Tensor):
        check_dense(name, value)
        if value.is_floating_point() and value.dtype not in FLOATS:
            raise TypeError(_expected(name, "of 16, 32 or 64 bits", str(value.dtype)))
        value = value.detach().resolve_conj().resolve_neg()
        return (value.float() if value.dtype in (torch.float16, torch.bfloat16) else value).cpu().numpy()
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise TypeError(_expected(name, "a torch tensor or a numpy array", type(value).__name__))
    if value.dtype in (np.float16, np.longdouble):  # scikit-learn and torch have no arrays of long doubles
        value = value.astype(np.float32 if value.dtype == np.float16 else np.float64)
    # torch and FAISS take neither the byte order of another machine nor negative strides
    native = value.astype(value.dtype.newbyteorder("="), copy=False)
    return native.copy() if any(stride < 0 for stride in native.strides) else native


def _expected(name: str, wanted: str, got: str) -> str:
    return f"Expected argument `{name}` to be {wanted}, but got {got}"
