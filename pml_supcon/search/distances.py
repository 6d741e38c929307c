"""Well-conditioned float32 squared distances: rows are shifted and scaled first."""

import math

import numpy as np

from pml_supcon._arrays import Floats, row_blocks

FAR = 16  # rows are shifted where |mean|^2 exceeds this many times their mean squared distance from the mean
NEAREST_REACH, FURTHEST_REACH = 2.0**-40, 2.0**60  # between them float32 holds the squares of lengths and differences
SMALLEST_SQUARE = 2.0**-100


def well_conditioned(
    queries: Floats, references: Floats, *, names: str = "`query` and `reference`"
) -> tuple[Floats, Floats, float]:
    """Shift and scale rows so that float32 ranks them by distance, not by rounding; most inputs need neither.

    ``|q|^2 - 2 q r + |r|^2`` cancels the digits that q and r share, and a squared length may be out of range. A common
    shift does not change distances, and a common factor does not change their order.

    Args:
        queries: ``(N, D)`` floats.
        references: ``(M, D)`` floats.
        names: The arguments in the error.

    Returns:
        Both in float32, the same arrays where nothing is done, and the power of two that distances are multiplied by.

    Raises:
        ValueError: If some rows are so long that the squares of most other rows underflow in float32.
    """
    # 1. shift to the mean if |mean|^2 dominates, (D,)
    squares = squared_lengths(references)
    shift = shift_to_origin(references, squares)
    if shift is not None:
        squares = squared_lengths(references, shift)
    # 2. reach >= every |q - r|; scale by 2^-exponent if its square leaves float32
    reach = math.sqrt(squares.max()) + math.sqrt(squared_lengths(queries, shift).max())
    scale = 1.0 if NEAREST_REACH < reach < FURTHEST_REACH or reach == 0 else 2.0 ** -math.frexp(reach)[1]
    # 3. reject if most |r|^2 would underflow
    above_zero = squares[squares > 0]
    if len(above_zero) and np.median(above_zero) * scale**2 < SMALLEST_SQUARE:
        raise ValueError(
            f"Expected {names} to have squared distances that fit into float32, but got lengths of {reach:.1e} "
            f"beside {math.sqrt(np.median(above_zero)):.1e}, the median of the references"
        )
    return moved(queries, shift, scale), moved(references, shift, scale), scale


def shift_to_origin(references: Floats, squares: Floats) -> Floats | None:
    """Return the rounded mean of ``(M, D)`` rows with these squared lengths, float64; None where no shift is needed.

    The mean is rounded to a power of two below the standard deviation of a coordinate: rows on a grid then stay on a
    grid, and their ties stay exact.
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
    """Return ``(rows - shift) * scale`` in float32, computed in float64."""
    if shift is None and scale == 1:
        return rows.astype(np.float32, copy=False)
    result = np.empty(rows.shape, np.float32)
    for part in row_blocks(len(rows)):
        result[part] = (rows[part].astype(np.float64) - (0 if shift is None else shift)) * scale
    return result


def squared_lengths(rows: Floats, origin: Floats | None = None) -> Floats:
    """Return the squared length of each row of ``(N, D)``, minus an origin, in float64, without a copy of all rows."""
    if origin is None:
        return np.asarray(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    return np.concatenate([squared_lengths(rows[part].astype(np.float64) - origin) for part in row_blocks(len(rows))])
