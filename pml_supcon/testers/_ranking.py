"""Nearest neighbours and what a ranking is worth: (queries x neighbours) in, one value per query out."""

import math
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from ._inputs import Floats, Labels

CHUNK_BYTES = 64 * 2**20
BYTES_PER_NEIGHBOUR = 96  # distance, index, label, match, precision, their temporaries and FAISS's own candidates
GPU_MAX_K = 2048  # FAISS finds no more neighbours than this on a GPU


def build_index(faiss: ModuleType, references: Floats, *, k: int, gpu: bool) -> Any:
    """Exact L2 index of ``(M, D)`` references: on all GPUs if wanted and k allows, else on the CPU."""
    index = faiss.IndexFlatL2(references.shape[1])
    if gpu and k <= GPU_MAX_K and faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(references)
    return index


def split_rows(rows: Labels, *, k: int, width: int, chunk_size: int | None) -> Iterator[Labels]:
    """Split row numbers into chunks of equal size, at most ``chunk_size`` (None: about `CHUNK_BYTES` each).

    Equal sizes, because FAISS computes the distances of fewer than 20 queries by another formula, whose rounding
    differs: a short last chunk could order near-ties otherwise than the rest.
    """
    if chunk_size is None:
        chunk_size = max(1, CHUNK_BYTES // (BYTES_PER_NEIGHBOUR * k + 4 * width))
    yield from np.array_split(rows, math.ceil(len(rows) / chunk_size))


def search(index: Any, queries: Floats, k: int, *, own: Labels | None) -> tuple[Floats, Labels]:
    """Squared distances and row numbers, both ``(n, k)``, of the k nearest references, nearest first.

    With ``own``, the rows of the queries among the references, these are left out. Among many duplicates of a
    query its own row may not be found at all: then the last neighbour goes, and the k before it are right.
    """
    distances, neighbours = index.search(queries, k if own is None else k + 1)
    if neighbours.min() < 0:  # FAISS fills up with -1 where a distance is not finite
        raise ValueError("Expected embeddings whose squared distances fit into float32, but got larger ones.")
    if own is None:
        return distances, neighbours
    drop = neighbours == own[:, None]
    drop[~drop.any(axis=1), -1] = True
    return distances[~drop].reshape(-1, k), neighbours[~drop].reshape(-1, k)


def ranking_scores(hits: npt.NDArray[np.bool_], relevant: Labels, recall_at: Sequence[int]) -> dict[str, Floats]:
    """Scores of each ranking.

    Args:
        hits: ``(n, k)``, whether the i-th nearest reference has the label of the query.
        relevant: ``(n,)``, R of each query, from 1 to k.
        recall_at: The k of ``recall_at_k``.

    Returns:
        One ``(n,)`` array of values in [0, 1] per metric.
    """
    rank = np.arange(1, relevant.max() + 1)
    hits_at_r = hits[:, : len(rank)] & (rank <= relevant[:, None])
    precision = np.cumsum(hits_at_r, axis=1) / rank
    return {
        "precision_at_1": hits[:, 0].astype(np.float64),
        **{f"recall_at_{k}": hits[:, :k].any(axis=1).astype(np.float64) for k in recall_at},
        "r_precision": hits_at_r.sum(axis=1) / relevant,
        "mean_average_precision_at_r": (precision * hits_at_r).sum(axis=1) / relevant,
    }


def knn_vote(labels: Labels, distances: Floats, temperature: float) -> Labels:
    """Label with the largest sum of weights among ``(n, k)`` neighbours, nearest first.

    The weight of a neighbour at squared distance d is ``exp(-d / (2 temperature))``.

    Returns:
        ``(n,)`` labels; among those with equal sums, that of the nearest neighbour.
    """
    # Weights relative to the nearest neighbour's, so that not all of them underflow.
    exponent = (distances[:, :1].astype(np.float64) - distances) / (2 * temperature)
    weights = np.exp(exponent)
    # One column at a time: (n, k, k) would break the bound on memory.
    sums = np.stack([(weights * (labels == column[:, None])).sum(axis=1) for column in labels.T], axis=1)
    # argmax takes the first of equal sums, and the first is the nearest.
    return np.take_along_axis(labels, sums.argmax(axis=1)[:, None], axis=1)[:, 0]
