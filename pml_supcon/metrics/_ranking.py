"""Scores of rankings: (queries x neighbours) in, one value per query out."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pml_supcon._arrays import Floats, Labels

NO_CLASS = -1  # the class of a label that no reference has


def as_classes(wanted: Labels, labels: Labels, *, own: bool) -> tuple[Labels, Labels, Labels]:
    """Encode the classes of the references ``(M,)`` as numbers from 0.

    Returns:
        The class of each query, ``(N,)``, or `NO_CLASS`; of each reference, ``(M,)``; and R of each query, ``(N,)``:
        the references of its class, without itself if the queries are among them (``own``).
    """
    classes, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    near = np.searchsorted(classes, wanted).clip(max=len(classes) - 1)
    query_classes = np.where(classes[near] == wanted, near, NO_CLASS)
    return query_classes, place, np.where(query_classes == NO_CLASS, 0, counts[near]) - int(own)


def ranking_scores(
    hits: npt.NDArray[np.bool_], relevant: Labels, recall_at: Sequence[int], *, at_r: bool
) -> dict[str, Floats]:
    """Compute the scores of each ranking.

    Args:
        hits: ``(n, k)``, True where the i-th nearest reference has the label of the query.
        relevant: ``(n,)``, R of each query, at least 1.
        recall_at: The k of ``recall_at_k``.
        at_r: Compute the metrics over the R nearest too; no R may then be above k.

    Returns:
        One ``(n,)`` array of values in [0, 1] per metric. The reciprocal rank is 0 where no hit is among the k.
    """
    found = hits.any(axis=1)
    scores: dict[str, Floats] = {
        "precision_at_1": hits[:, 0].astype(np.float64),
        "mean_reciprocal_rank": np.where(found, 1 / (1 + hits.argmax(axis=1)), 0.0),
    }
    scores |= {f"recall_at_{k}": np.asarray(hits[:, :k].any(axis=1), np.float64) for k in recall_at}
    if at_r:
        rank = np.arange(1, relevant.max() + 1)
        hits_at_r = hits[:, : len(rank)] & (rank <= relevant[:, None])
        precision = np.cumsum(hits_at_r, axis=1, dtype=np.float64)
        precision /= rank
        precision *= hits_at_r
        scores["r_precision"] = hits_at_r.sum(axis=1) / relevant
        scores["mean_average_precision_at_r"] = precision.sum(axis=1) / relevant
    return scores


def knn_vote(labels: Labels, distances: Floats, temperature: float) -> Labels:
    """Return the label with the largest sum of weights among ``(n, k)`` neighbours, nearest first.

    The weight of a neighbour at squared distance d is ``exp(-d / (2 temperature))``; one at an infinite distance, a
    place that an index left empty, has no vote.

    Returns:
        ``(n,)`` labels; among equal sums, the label of the nearest neighbour.
    """
    found = np.isfinite(distances)
    apart = np.where(found, distances, 0).astype(np.float64)
    # Weights relative to the nearest neighbour's, so that not all of them underflow.
    weights = np.where(found, np.exp((apart[:, :1] - apart) / (2 * temperature)), 0)
    # Equal labels side by side, nearest first, so that each run of them is added up in that order.
    order = labels.argsort(axis=1, kind="stable")
    beside = np.take_along_axis(labels, order, axis=1)
    first = np.ones(labels.shape, bool)
    first[:, 1:] = beside[:, 1:] != beside[:, :-1]
    run = first.ravel().cumsum() - 1
    votes = np.bincount(run, weights=np.take_along_axis(weights, order, axis=1).ravel())
    sums = np.empty(labels.shape)
    np.put_along_axis(sums, order, votes[run].reshape(labels.shape), axis=1)
    # argmax takes the first of equal sums, and the first is the nearest.
    return np.take_along_axis(labels, sums.argmax(axis=1)[:, None], axis=1)[:, 0]
