"""Squared distances in float32 that tell rows apart, wherever the rows lie and whatever torch is set to."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from pml_supcon._arrays import Floats, row_blocks
from pml_supcon.functional.supcon.tiled.precision import full_precision

FAR = 16  # squared length of the mean over the mean squared distance from it
NEAREST_REACH, FURTHEST_REACH = 2.0**-40, 2.0**60  # squares, and those of differences, are in float32's range between
SMALLEST_SQUARE = 2.0**-100
LESSER = ("tf32", "bf16")
PRECISION_BY_BACKEND = hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision")


def well_conditioned(queries: Floats, references: Floats) -> tuple[Floats, Floats, float]:
    """Move and scale rows so that float32 ranks them by their distances, not by its rounding; most need neither.

    `|q|^2 - 2 q r + |r|^2` loses the digits that q and r share, and a squared length may be out of range. Distances do
    not change when all rows move alike, nor their order by a common factor.

    Args:
        queries: `(N, D)` floats.
        references: `(M, D)` floats.

    Returns:
        Both in float32, the same arrays where nothing is done, and the power of two by which distances have grown.

    Raises:
        ValueError: some rows are so long that float32 has no room for the squares of most others.
    """
    squares = squared_lengths(references)
    shift = shift_to_origin(references, squares)
    if shift is not None:
        squares = squared_lengths(references, shift)
    reach = math.sqrt(squares.max()) + math.sqrt(squared_lengths(queries, shift).max())
    scale = 1.0 if NEAREST_REACH < reach < FURTHEST_REACH or reach == 0 else 2.0 ** -math.frexp(reach)[1]
    above_zero = squares[squares > 0]
    if len(above_zero) and np.median(above_zero) * scale**2 < SMALLEST_SQUARE:
        raise ValueError(
            f"Expected embeddings whose squared distances fit into float32, but got lengths of {reach:.1e} beside "
            f"{math.sqrt(np.median(above_zero)):.1e}, that of most references."
        )
    return moved(queries, shift, scale), moved(references, shift, scale), scale


def shift_to_origin(references: Floats, squares: Floats) -> Floats | None:
    """About the mean of `(M, D)` rows with the squared lengths given, float64; None where the origin is near enough.

    The mean is rounded to a power of two below the spread of a coordinate: rows on a grid then stay on one, and their
    ties stay exact.
    """
    mean = references.mean(axis=0, dtype=np.float64)
    length = float(mean @ mean)
    if length <= FAR * (float(squares.mean()) - length):
        return None
    spread = math.sqrt(float(squared_lengths(references, mean).mean()) / len(mean))
    if spread == 0:
        return np.asarray(mean)
    step = 2.0 ** math.floor(math.log2(spread))
    return np.asarray(np.round(mean / step) * step)


def moved(rows: Floats, shift: Floats | None, scale: float) -> Floats:
    """`(rows - shift) * scale`, computed in float64, in float32."""
    if shift is None and scale == 1:
        return rows.astype(np.float32, copy=False)
    made = np.empty(rows.shape, np.float32)
    for part in row_blocks(len(rows)):
        made[part] = (rows[part].astype(np.float64) - (0 if shift is None else shift)) * scale
    return made


def squared_lengths(rows: Floats, origin: Floats | None = None) -> Floats:
    """Of each row of `(N, D)`, from an origin, in float64, without a copy of the rows."""
    if origin is None:
        return np.asarray(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    return np.concatenate([squared_lengths(rows[part].astype(np.float64) - origin) for part in row_blocks(len(rows))])


@contextmanager
def float32_products(device: torch.device) -> Iterator[None]:
    """No autocast, and neither TF32 nor bfloat16 inside products of float32, whatever the user has set."""
    with full_precision(device), ieee_where_set() if PRECISION_BY_BACKEND else highest_precision():
        yield


@contextmanager
def ieee_where_set() -> Iterator[None]:
    """For torch from 2.9 on, where both of its settings, of old and of new, end at each backend's."""
    mkldnn: Any = torch.backends.mkldnn  # its types do not know of `matmul`
    backends: list[Any] = [torch.backends.cuda.matmul, mkldnn.matmul]
    before = [(backend, backend.fp32_precision) for backend in backends if backend.fp32_precision in LESSER]
    try:
        for backend, _ in before:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in before:
            backend.fp32_precision = precision


@contextmanager
def highest_precision() -> Iterator[None]:
    """For torch below 2.9, with one setting for all."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.set_float32_matmul_precision(before)
