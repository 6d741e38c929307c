"""Checks of a classifier's scores ``(N, C)``, and their sums in bins of confidence."""

import numpy as np
import numpy.typing as npt

from pml_supcon._arrays import Array, Floats, Labels, as_embeddings, as_labels

SUM_TOLERANCE = 1e-2  # of the sum of a row of probabilities: the rounding of a softmax in bfloat16
ROUNDING = 1e-6  # of a probability above 1

Bools = npt.NDArray[np.bool_]


def as_logits(logits: Array, labels: Array) -> tuple[Floats, Labels]:
    """Check finite logits ``(N, C)``, C at least 2, and their labels (columns); return both, the logits in float64."""
    rows = as_embeddings(logits, "logits", dtype=np.float64)
    return rows, _as_columns(labels, rows, "logits")


def as_probabilities(probabilities: Array, labels: Array) -> tuple[Floats, Labels]:
    """Check probabilities ``(N, C)``, C at least 2, and their labels (columns); return both, the dtype unchanged."""
    rows = as_embeddings(probabilities, "probabilities")
    wanted = _as_columns(labels, rows, "probabilities")
    sums = rows.sum(axis=1, dtype=np.float64)
    bad = (rows < 0).any(axis=1) | (rows > 1 + ROUNDING).any(axis=1) | (np.abs(sums - 1) > SUM_TOLERANCE)
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(
            "Expected argument `probabilities` to have values in [0, 1] and rows with sum 1, but got "
            f"{bad.sum()} of {len(rows)} rows that violate this (the first is row {first}, from "
            f"{rows[first].min():g} to {rows[first].max():g}, with sum {sums[first]:g}). Apply softmax to logits first"
        )
    return rows, wanted


def _as_columns(labels: Array, rows: Floats, name: str) -> Labels:
    if rows.shape[1] < 2:
        raise ValueError(f"Expected argument `{name}` to have a column for each of at least 2 classes, but got 1")
    wanted = as_labels(labels, "labels", len(rows))
    if wanted.min() < 0 or wanted.max() >= rows.shape[1]:
        raise ValueError(
            f"Expected argument `labels` to be columns of `{name}`, from 0 to {rows.shape[1] - 1}, but got "
            f"{wanted.min()} to {wanted.max()}"
        )
    return wanted


def top_bins(rows: Floats, wanted: Labels, bins: int) -> tuple[Floats, Floats, Floats]:
    """Return the `bin_sums` of the largest probability of each row."""
    columns = rows.argmax(axis=1)
    return bin_sums(rows[np.arange(len(rows)), columns], columns == wanted, bins)


def bin_sums(values: Floats, hits: Bools, bins: int) -> tuple[Floats, Floats, Floats]:
    """Return rows, sum of values, and hits in the bins ((m - 1) / M, m / M], each ``(bins,)`` float64."""
    # Edges in the dtype of the values, so that 0.6 in float32 is on the edge 0.6.
    edges = (np.arange(1, bins) / bins).astype(
        values.dtype
    )  # inner edges: 0, and 1 after rounding, are in the outer bins
    place = np.searchsorted(edges, values, side="left")
    sums = (np.bincount(place, weights=weights, minlength=bins) for weights in (None, values, hits))
    counts, total, right = (part.astype(np.float64) for part in sums)
    return counts, total, right
