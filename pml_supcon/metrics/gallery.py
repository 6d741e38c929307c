"""The queries with the worst retrieval, with their nearest neighbours."""

from typing import NamedTuple

import numpy as np
import torch
from sklearn.preprocessing import normalize

from pml_supcon._arrays import Array, Floats, Labels, as_embeddings, as_labels, check_same_width
from pml_supcon._checks import check_bool, check_int
from pml_supcon.metrics._ranking import as_classes
from pml_supcon.search.indexes import make_searcher

QUERIES = 20
NEIGHBOURS = 8
BLOCK = 4096  # queries searched at a time


class WorstQueries(NamedTuple):
    """The worst queries, worst first, each with its K neighbours, nearest first.

    Attributes:
        rows: ``(Q,)`` int64, the rows of the queries.
        scores: ``(Q,)`` float64 in [0, 1], their average precision over K neighbours.
        neighbours: ``(Q, K)`` int64, rows of the references.
        similarities: ``(Q, K)`` float64, cosines in [-1, 1].
    """

    rows: Labels
    scores: Floats
    neighbours: Labels
    similarities: Floats


def worst_queries(
    query: Array,
    query_labels: Array,
    reference: Array,
    reference_labels: Array,
    *,
    queries: int = QUERIES,
    neighbours: int = NEIGHBOURS,
    ref_includes_query: bool = False,
) -> WorstQueries:
    r"""Find the queries with the lowest average precision over their nearest neighbours.

    With :math:`h_i = 1` where the i-th of the K nearest references has the label of the query, else 0, and R references
    of that label (the query itself not counted), the score is

    .. math:: \frac{1}{\min(K, R)} \sum_{i \le K} h_i \frac{1}{i} \sum_{j \le i} h_j

    Rows are normalised here; a zero row stays zero, and its similarity to every row is 0. Among equal scores, the query
    whose wrong neighbours are more similar to it, and whose right neighbours are less similar, comes first. Memory:
    ``(N, K)`` arrays, and what the exact search takes for `BLOCK` queries.

    Args:
        query: ``(N, D)`` floats, converted to float32.
        query_labels: ``(N,)`` integers.
        reference: ``(M, D)`` floats.
        reference_labels: ``(M,)`` integers.
        queries: The number of queries to return, at most.
        neighbours: K, at least 1; all references where there are fewer.
        ref_includes_query: The first N references are the queries, and no query is its own neighbour.

    Returns:
        The worst queries. A query without a relevant reference (R = 0) has no score and is left out, so that there may
        be none at all.

    Raises:
        ImportError: If FAISS is not installed.
        TypeError: If embeddings are not floating point, labels or counts not integers,
            or ``ref_includes_query`` no bool.
        ValueError: If a shape, a width or a count is wrong, an embedding is not finite, or ``ref_includes_query`` is
            set and the reference labels do not start with the query labels.

    Examples:
        >>> query, reference = np.array([[1.0, 0.0]]), np.array([[0.8, 0.6], [0.6, 0.8]])
        >>> worst = worst_queries(query, np.array([0]), reference, np.array([1, 0]))
        >>> worst.rows, worst.scores, worst.neighbours, worst.similarities.round(3)
        (array([0]), array([0.5]), array([[0, 1]]), array([[0.8, 0.6]]))
    """
    check_int("queries", queries, low=1)
    neighbours = check_int("neighbours", neighbours, low=1)  # FAISS takes no integers of NumPy
    own = check_bool("ref_includes_query", ref_includes_query)
    unit, references = (
        normalize(as_embeddings(value, name, dtype=np.float32))
        for value, name in ((query, "query"), (reference, "reference"))
    )
    check_same_width(unit, "query", references, "reference")
    wanted = as_labels(query_labels, "query_labels", len(unit))
    labels = as_labels(reference_labels, "reference_labels", len(references))
    if own and not np.array_equal(wanted, labels[: len(unit)]):
        raise ValueError(
            "Expected argument `reference_labels` to start with `query_labels`, since `ref_includes_query` is set, but "
            f"got others ({len(unit)} queries, {len(references)} references)"
        )

    _, _, relevant = as_classes(wanted, labels, own=own)
    scored = np.flatnonzero(relevant > 0)

    # The K nearest references of each scored query, (n, K), and their cosines, block by block.
    k = min(neighbours, len(references) - int(own))
    device = torch.device("cpu")
    search = make_searcher(unit, references, index="exact", own=own, k=k, device=device)
    found, cosines = np.empty((len(scored), k), np.int64), np.empty((len(scored), k))
    for start in range(0, len(scored), BLOCK):
        rows, block = scored[start : start + BLOCK], slice(start, start + BLOCK)
        found[block] = search.find(rows, k)[1]
        for column in range(k):  # one column at a time: all K at once would take K times the memory
            cosines[block, column] = (unit[rows] * references[found[block, column]]).sum(1)

    # Average precision over the K neighbours, (n,): the mean, over at most R hits, of the precision at each hit.
    hits = labels[found] == wanted[scored, None]
    precision = np.cumsum(hits, axis=1) / np.arange(1, k + 1)
    scores = (precision * hits).sum(1) / np.minimum(k, relevant[scored])

    # Order by score; among equal scores by how similar wrong neighbours are, and how dissimilar right ones.
    mistaken = np.where(hits, -cosines, cosines).sum(1)
    worst = np.lexsort((-mistaken, scores))[:queries]
    return WorstQueries(scored[worst], scores[worst], found[worst], cosines[worst].clip(-1, 1))
