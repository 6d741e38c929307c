"""Exact retrieval metrics in bounded memory."""

import logging
from collections.abc import Sequence
from typing import TypedDict, Unpack

import numpy as np
import torch

from pml_supcon._arrays import Array, Floats, Labels, as_labels, check_sequence, count_zero_rows
from pml_supcon._checks import check_bool, check_int, check_number
from pml_supcon._extras import require_faiss
from pml_supcon.metrics._ranking import as_classes, knn_vote, ranking_scores
from pml_supcon.search.distances import well_conditioned
from pml_supcon.search.exact import StreamedSearcher, in_threads, split_rows
from pml_supcon.search.indexes import check_index, make_searcher
from pml_supcon.search.inputs import as_ranked, check_starts_with

logger = logging.getLogger(__name__)

RECALL_AT = (1, 2, 4, 8)
KNN_K = 20
KNN_TEMPERATURE = 0.07

BYTES_PER_NEIGHBOUR = 64  # distance, row, class, hit, precision and their temporaries
NO_NEIGHBOUR = -2  # the class of a place that an index left empty, neither a class nor `NO_CLASS`


class RetrievalOptions(TypedDict, total=False):
    """The options of `retrieval_scores`, which describes them."""

    ref_includes_query: bool
    recall_at: Sequence[int]
    knn_k: int
    knn_temperature: float
    at_r: bool
    index: str
    chunk_size: int | None


def retrieval_scores(
    query: Array,
    query_labels: Array,
    reference: Array,
    reference_labels: Array,
    *,
    ref_includes_query: bool = False,
    recall_at: Sequence[int] = RECALL_AT,
    knn_k: int = KNN_K,
    knn_temperature: float = KNN_TEMPERATURE,
    at_r: bool = True,
    index: str = "exact",
    chunk_size: int | None = None,
) -> dict[str, Floats]:
    r"""Rank the references of every query by L2 distance, and score each ranking.

    Let :math:`R_q` be the number of references with the label of query :math:`q` (itself not counted), and let
    :math:`h_{qi}` be 1 if its i-th nearest reference is one of them, else 0. Per query,

    - ``precision_at_1``: :math:`h_{q1}`;
    - ``recall_at_k``: 1 when any of the k nearest is relevant, :math:`\max_{i \le k} h_{qi}`;
    - ``mean_reciprocal_rank``: :math:`1 / \min \{i : h_{qi} = 1\}`;
    - ``r_precision``: :math:`\frac{1}{R_q} \sum_{i \le R_q} h_{qi}`;
    - ``mean_average_precision_at_r``:
      :math:`\frac{1}{R_q} \sum_{i \le R_q} h_{qi} \frac{1}{i} \sum_{j \le i} h_{qj}` (MAP@R of Musgrave et
      al., *A Metric Learning Reality Check*, ECCV 2020);
    - ``knn_accuracy``: 1 when the vote of the ``knn_k`` nearest elects the label of the query. A neighbour at
      distance d votes for its label with weight :math:`\exp(-d^2 / 2\tau)`. For normalised embeddings the weight is
      proportional to :math:`\exp(\cos / \tau)`, the weighted k-NN of Wu et al. (CVPR 2018, section 3.4).
      Among labels with the same sum of weights, the one with the nearest neighbour wins.

    All references are ranked, in float32. The queries are searched in chunks: beside the embeddings, memory holds
    (chunk x references) distances and (chunk x k) neighbours, with k the largest of all :math:`R_q`, ``recall_at`` and
    ``knn_k``. For small k FAISS searches, which is faster; CUDA references are ranked on their GPU. References at the
    same distance are ranked by their rows. Rows far from the origin are shifted to it, and very long or short rows
    are scaled by a common factor, so that float32 resolves their distances.

    Args:
        query: ``(N, D)`` floats, converted to float32. Normalise them for cosine similarity, as PML's
            testers do.
        query_labels: ``(N,)`` integers of any size, compared as int64.
        reference: ``(M, D)`` floats.
        reference_labels: ``(M,)`` integers.
        ref_includes_query: The first N references are the queries, and no query is its own neighbour.
        recall_at: The k of ``recall_at_k``, each at least 1. Where a query has fewer references than k, all
            of them count, and a warning is logged.
        knn_k: Neighbours that vote, at least 1; with fewer references as for ``recall_at``.
        knn_temperature: :math:`\tau`, above 0; ``math.inf`` makes it the unweighted majority vote.
        at_r: False leaves out ``r_precision`` and ``mean_average_precision_at_r``, so that k is small for classes of
            any size.
        index: ``"exact"``, or an approximate index or one on GPUs by name (`INDEXES`) or by a string of FAISS's
            ``index_factory``. The metrics then score the neighbours that it finds; `index_recall` measures the share
            that it misses. A reciprocal rank is 0 where no relevant reference is among the k found.
        chunk_size: Queries searched at a time; None chooses it so that a chunk stays below about 64 MiB.

    Returns:
        One float64 ``(N,)`` array per metric, with values in [0, 1]; NaN for "lone" queries (:math:`R_q = 0`).

    Raises:
        ImportError: If FAISS is not installed.
        TypeError: If embeddings are not floating point, or labels or counts not integers.
        ValueError: If a shape, a width or an option is wrong, an embedding is not finite, all queries or all references
            are zero or several references all identical (the ranking would depend on row order), ``ref_includes_query``
            is set and the references do not start with the queries, or no query has a relevant reference.

    Examples:
        >>> points = np.array([[0.1], [0.2], [1.0], [1.3], [5.0]])
        >>> labels = np.array([0, 0, 1, 0, 2])
        >>> scores = retrieval_scores(points, labels, points, labels, ref_includes_query=True)
        >>> scores["mean_reciprocal_rank"].round(3).tolist()
        [1.0, 1.0, nan, 0.5, nan]
    """
    check_bool("ref_includes_query", ref_includes_query)
    check_retrieval_options(recall_at, knn_k, knn_temperature, at_r, chunk_size, index)
    queries, references = as_ranked(query, reference)
    wanted = as_labels(query_labels, "query_labels", len(queries))
    labels = as_labels(reference_labels, "reference_labels", len(references))
    if ref_includes_query:
        check_starts_with(references, queries, labels=(labels, wanted))
    query_classes, place, relevant = as_classes(wanted, labels, own=ref_includes_query)
    kept: Labels = np.flatnonzero(relevant > 0)
    if len(kept) == 0:
        raise ValueError(f"Expected a query with a relevant reference, but none of the {len(queries)} has one")
    available = len(references) - int(ref_includes_query)
    for name, requested in (("recall_at", max(recall_at, default=1)), ("knn_k", knn_k)):
        if requested > available:
            text = "`%s` asks for %d neighbours, but there are %d references: all count."
            logger.warning(text, name, requested, available)
    least = max(1, knn_k, *recall_at)
    k = min(available, max(int(relevant.max()) if at_r else 1, least))
    device = reference.device if isinstance(reference, torch.Tensor) else torch.device("cpu")
    queries, references, scale = well_conditioned(queries, references)
    searcher = make_searcher(queries, references, index=index, own=ref_includes_query, k=k, device=device)

    scores = {name: np.full(len(queries), np.nan) for name in metric_names(recall_at, at_r)}
    # Queries in the order of R: each chunk searches only as many neighbours as its own largest R.
    kept = kept[np.argsort(relevant[kept], kind="stable")]
    for rows in split_rows(kept, row_bytes=searcher.row_bytes + BYTES_PER_NEIGHBOUR * k, chunk_size=chunk_size):
        distances, neighbours = searcher.find(rows, min(available, max(int(relevant[rows[-1]]) * at_r, least)))
        found = np.where(neighbours < 0, NO_NEIGHBOUR, place[neighbours])

        def score(part: slice, rows: Labels = rows, found: Labels = found, distances: Floats = distances) -> None:
            own, near = rows[part], found[part]
            ranked = ranking_scores(near == query_classes[own, None], relevant[own], recall_at, at_r=at_r)
            winner = knn_vote(near[:, :knn_k], distances[part, :knn_k], knn_temperature * scale**2)
            for name, values in (ranked | {"knn_accuracy": winner == query_classes[own]}).items():
                scores[name][own] = values

        in_threads(score, len(rows))
    if index == "exact" and len(late := kept[scores["mean_reciprocal_rank"][kept] == 0]):
        streamed = StreamedSearcher(queries, references, own=ref_includes_query, device=device)
        # Not the user's `chunk_size`: it may suit FAISS, which holds no row of distances.
        for some in split_rows(late, row_bytes=streamed.row_bytes, chunk_size=None):
            scores["mean_reciprocal_rank"][some] = 1 / streamed.first_ranks(some, query_classes[some], place)
    return scores


def retrieval_metrics(
    query: Array, query_labels: Array, reference: Array, reference_labels: Array, **options: Unpack[RetrievalOptions]
) -> dict[str, float]:
    """Average `retrieval_scores` over the queries.

    Each metric is the mean over the queries that have a relevant reference, as in PML's ``AccuracyCalculator``;
    ``precision_at_1``, ``mean_reciprocal_rank``, ``r_precision`` and ``mean_average_precision_at_r`` equal PML's. The
    other queries are left out and counted. Zero rows, which have no direction and the same distance from every unit
    vector, are counted too, and a warning is logged.

    Args:
        query: ``(N, D)`` floats.
        query_labels: ``(N,)`` integers.
        reference: ``(M, D)`` floats.
        reference_labels: ``(M,)`` integers.
        **options: ``ref_includes_query``, ``recall_at``, ``knn_k``, ``knn_temperature``, ``at_r``, ``index`` and
            ``chunk_size`` of `retrieval_scores`.

    Returns:
        ``precision_at_1``, ``recall_at_k`` for each k, ``mean_reciprocal_rank``, ``r_precision``,
        ``mean_average_precision_at_r`` and ``knn_accuracy``, each in [0, 1], and the counts ``lone_queries`` and
        ``zero_rows``.

    Raises:
        ImportError: If FAISS is not installed.
        TypeError: If an argument has the wrong type.
        ValueError: If `retrieval_scores` rejects an argument.

    Examples:
        >>> points = np.array([[0.1], [0.2], [1.0], [1.3], [5.0]])
        >>> labels = np.array([0, 0, 1, 0, 2])
        >>> options = {"ref_includes_query": True, "recall_at": (3,), "knn_k": 1}
        >>> for name, value in retrieval_metrics(points, labels, points, labels, **options).items():
        ...     print(name, round(value, 3))
        precision_at_1 0.667
        recall_at_3 1.0
        mean_reciprocal_rank 0.833
        r_precision 0.5
        mean_average_precision_at_r 0.417
        knn_accuracy 0.667
        lone_queries 2.0
        zero_rows 0.0
    """
    scores = retrieval_scores(query, query_labels, reference, reference_labels, **options)
    zeros = count_zero_rows(reference) + (0 if options.get("ref_includes_query") else count_zero_rows(query))
    if zeros:
        logger.warning("%d rows are zero: they have no direction, and their nearest neighbours mean nothing.", zeros)
    lone = int(np.isnan(scores["precision_at_1"]).sum())
    return {name: float(np.nanmean(values)) for name, values in scores.items()} | {
        "lone_queries": float(lone),
        "zero_rows": float(zeros),
    }


def metric_names(recall_at: Sequence[int], at_r: bool) -> list[str]:
    """Return the names of the metrics of `retrieval_scores`, in their order."""
    recalls = [f"recall_at_{k}" for k in recall_at]
    ranked = ["r_precision", "mean_average_precision_at_r"] if at_r else []
    return ["precision_at_1", *recalls, "mean_reciprocal_rank", *ranked, "knn_accuracy"]


def check_retrieval_options(
    recall_at: Sequence[int], knn_k: int, knn_temperature: float, at_r: bool, chunk_size: int | None, index: str
) -> None:
    """Raise unless the options suit `retrieval_scores`."""
    check_sequence("recall_at", recall_at, "integers")
    for k in recall_at:
        check_int("recall_at", k, low=1)
    check_int("knn_k", knn_k, low=1)
    check_bool("at_r", at_r)
    check_number("knn_temperature", knn_temperature, above=0, finite=False)
    if chunk_size is not None:
        check_int("chunk_size", chunk_size, low=1)
    require_faiss()
    check_index(index)
