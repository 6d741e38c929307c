"""The queries whose nearest neighbours are the worst, with these neighbours."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.preprocessing import normalize

from pml_supcon.metrics._inputs import Array, Floats, Labels, as_embeddings, as_labels, check_count, check_same_width
from pml_supcon.search.indexes import make_searcher

BLOCK = 4096  # queries whose neighbours are held at a time


def gallery(
    query: Array,
    query_labels: Array,
    reference: Array,
    reference_labels: Array,
    class_names: Sequence[str],
    *,
    queries: int = 20,
    neighbours: int = 8,
    own: bool,
) -> list[dict[str, Any]]:
    r"""Find the queries that retrieval serves worst, by the average precision over their nearest neighbours.

    With :math:`h_i` whether the i-th of the K neighbours has the label of the query, and R references that have it
    (itself not counted), the score is

    .. math:: \frac{1}{\min(K, R)} \sum_{i \le K} h_i \frac{1}{i} \sum_{j \le i} h_j

    A query without any relevant reference (R = 0) has no score and is left out. Rows are normalised here; rows of
    zeros stay as they are, and their similarity to all is 0. Of equal scores the query comes first whose wrong
    neighbours are the more similar to it, and whose right ones the less. Beside the rows, memory holds `(N, K)` arrays,
    and what the exact search takes for `BLOCK` queries.

    Args:
        query: `(N, D)` floats.
        query_labels: `(N,)` integers, places in `class_names`.
        reference: `(M, D)` floats.
        reference_labels: `(M,)` integers, places in `class_names`.
        class_names: the name of each class.
        queries: how many to return, at most.
        neighbours: K; all references where there are fewer.
        own: the first N references are the queries, and no query finds itself.

    Returns:
        The worst queries, worst first: `query` (its row), `label`, `score` in [0, 1], and `neighbours`, nearest first,
        each with `reference` (its row), `label`, `right` and `similarity` (the cosine, in [-1, 1]).

    Raises:
        TypeError: embeddings are not floating point, or labels or counts not integers.
        ValueError: a shape, a width, a label or a count is wrong, an embedding is not finite, or the references do not
            start with the queries though `own` says so.

    Examples:
        >>> query, reference = np.array([[1.0, 0.0]]), np.array([[0.8, 0.6], [0.6, 0.8]])
        >>> worst = gallery(query, np.array([0]), reference, np.array([1, 0]), ["cat", "dog"], own=False)[0]
        >>> worst["label"], worst["score"], [(n["label"], round(n["similarity"], 3)) for n in worst["neighbours"]]
        ('cat', 0.5, [('dog', 0.8), ('cat', 0.6)])
    """
    check_count(queries, "queries")
    check_count(neighbours, "neighbours")
    unit, references = (_unit(value, name) for value, name in ((query, "query"), (reference, "reference")))
    check_same_width(unit, "query", references, "reference")
    wanted = _places(query_labels, "query_labels", len(unit), len(class_names))
    labels = _places(reference_labels, "reference_labels", len(references), len(class_names))
    if own and (len(unit) > len(references) or not np.array_equal(wanted, labels[: len(unit)])):
        raise ValueError(
            "Expected argument `reference_labels` to start with `query_labels`, since `own` is set, but got others "
            f"({len(unit)} queries, {len(references)} references)."
        )
    relevant = np.bincount(labels, minlength=len(class_names))[wanted] - int(own)
    kept = np.flatnonzero(relevant > 0)
    shown = min(neighbours, len(references) - int(own))
    search = make_searcher(unit, references, index="exact", own=own, k=shown, device=torch.device("cpu"))
    found = np.empty((len(kept), shown), dtype=np.int64)
    similarity = np.empty((len(kept), shown), dtype=np.float64)
    for start in range(0, len(kept), BLOCK):
        rows, place = kept[start : start + BLOCK], slice(start, start + BLOCK)
        found[place] = search.find(rows, shown)[1]
        for column in range(shown):  # a column at a time: all at once would be `shown` times the block
            similarity[place, column] = (unit[rows] * references[found[place, column]]).sum(1)
    hits = labels[found] == wanted[kept, None]
    scores = neighbour_precision(hits, relevant[kept])
    mistaken = np.where(hits, -similarity, similarity).sum(1)
    worst = np.lexsort((-mistaken, scores))[:queries]
    return [
        {
            "query": int(kept[row]),
            "label": class_names[wanted[kept[row]]],
            "score": float(scores[row]),
            "neighbours": [
                {
                    "reference": int(place),
                    "label": class_names[labels[place]],
                    "right": bool(labels[place] == wanted[kept[row]]),
                    "similarity": float(np.clip(cosine, -1, 1)),  # rounding leads a little out of the range
                }
                for place, cosine in zip(found[row], similarity[row], strict=True)
            ],
        }
        for row in worst
    ]


def neighbour_precision(hits: npt.NDArray[np.bool_], relevant: Labels) -> Floats:
    """Average precision over K neighbours: `(n, K)` hits, nearest first, and `(n,)` relevant references (at least 1).

    Examples:
        >>> neighbour_precision(np.array([[True, False, True], [False, True, False]]), np.array([2, 9])).round(3)
        array([0.833, 0.167])
    """
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    score: Floats = (precision * hits).sum(1) / np.minimum(hits.shape[1], relevant)
    return score


def _unit(value: Array, name: str) -> Floats:
    unit: Floats = normalize(as_embeddings(value, name, dtype=np.float32))
    return unit


def _places(value: Array, name: str, rows: int, classes: int) -> Labels:
    labels = as_labels(value, name, rows)
    if labels.min() < 0 or labels.max() >= classes:
        found = labels[(labels < 0) | (labels >= classes)][0]
        raise ValueError(f"Expected argument `{name}` to be places in the {classes} class names, but got {found}.")
    return labels
