"""Exact retrieval metrics in bounded memory, and the PML tester that reports them."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester

from .._extras import require_faiss
from ._inputs import (
    Array,
    Floats,
    Labels,
    as_embeddings,
    as_labels,
    check_count,
    check_positive,
    check_same_width,
)
from ._pml import FunctionCalculator
from ._ranking import build_index, knn_vote, ranking_scores, search, split_rows

logger = logging.getLogger(__name__)

RECALL_AT = (1, 2, 4, 8)
KNN_K = 20
KNN_TEMPERATURE = 0.07


def retrieval_metrics(
    query: Array,
    query_labels: Array,
    reference: Array,
    reference_labels: Array,
    *,
    ref_includes_query: bool = False,
    recall_at: Sequence[int] = RECALL_AT,
    knn_k: int = KNN_K,
    knn_temperature: float = KNN_TEMPERATURE,
    chunk_size: int | None = None,
) -> dict[str, float]:
    r"""Rank the references of every query by exact L2 distance and average what the ranking is worth.

    Let :math:`R_q` be the number of references with the label of query :math:`q` (itself not counted), and
    :math:`h_{qi} \in \{0, 1\}` whether its i-th nearest reference is one of them. Per query,

    - ``precision_at_1``: :math:`h_{q1}`;
    - ``recall_at_k``: 1 when any of the k nearest is relevant, :math:`\max_{i \le k} h_{qi}`;
    - ``r_precision``: :math:`\frac{1}{R_q} \sum_{i \le R_q} h_{qi}`;
    - ``mean_average_precision_at_r``:
      :math:`\frac{1}{R_q} \sum_{i \le R_q} h_{qi} \frac{1}{i} \sum_{j \le i} h_{qj}` (MAP@R of Musgrave et
      al., *A Metric Learning Reality Check*, ECCV 2020);
    - ``knn_accuracy``: whether the vote of the ``knn_k`` nearest names the label of the query. A neighbour at
      distance d votes for its label with weight :math:`\exp(-d^2 / 2\tau)`. For normalised embeddings that is
      proportional to :math:`\exp(\cos / \tau)`, the weighted k-NN of Wu et al. (CVPR 2018, section 3.4).
      Among labels with the same sum of weights, the one with the nearest neighbour wins.

    Each is the mean over the queries that have a relevant reference, as in PML's ``AccuracyCalculator``, with
    which the first, third and fourth agree. The others ("lone" queries: :math:`R_q = 0`) are left out and
    counted in ``lone_queries``. FAISS breaks ties of the distance.

    Queries go through in chunks: beside the embeddings, memory holds (chunk x k) arrays only, with k the
    largest of all :math:`R_q`, ``recall_at`` and ``knn_k``. CUDA references are searched on the GPU where
    FAISS has GPU support and k allows (2,048), else on the CPU.

    Args:
        query: ``(N, D)`` floats, computed with in float32. Normalise them for cosine similarity, as PML's
            testers do.
        query_labels: ``(N,)`` integers of any size, compared as int64.
        reference: ``(M, D)`` floats.
        reference_labels: ``(M,)`` integers.
        ref_includes_query: The first N references are the queries, and no query finds itself.
        recall_at: The k of ``recall_at_k``, each at least 1. Where a query has fewer references than k, all
            of them count, and a warning says so.
        knn_k: Neighbours that vote, at least 1; with fewer references as for ``recall_at``.
        knn_temperature: :math:`\tau`, above 0; ``math.inf`` makes it the unweighted majority vote.
        chunk_size: Queries searched at a time; None chooses it so that a chunk stays below about 64 MiB.

    Returns:
        ``precision_at_1``, ``recall_at_k`` for each k, ``r_precision``, ``mean_average_precision_at_r`` and
        ``knn_accuracy``, each in [0, 1], and ``lone_queries``, a count.

    Raises:
        ImportError: If FAISS is not installed.
        TypeError: If embeddings are not floating point, or labels or counts not integers.
        ValueError: If a shape, a width or an option is wrong, an embedding is not finite, the references do
            not start with the queries though ``ref_includes_query`` says so, or no query has a relevant
            reference.

    Example:
        >>> points = np.array([[0.0], [0.1], [1.0], [1.3], [5.0]])
        >>> labels = np.array([0, 0, 1, 0, 2])
        >>> options = {"ref_includes_query": True, "recall_at": (3,), "knn_k": 1}
        >>> for name, value in retrieval_metrics(points, labels, points, labels, **options).items():
        ...     print(name, round(value, 3))
        precision_at_1 0.667
        recall_at_3 1.0
        r_precision 0.5
        mean_average_precision_at_r 0.417
        knn_accuracy 0.667
        lone_queries 2.0
    """
    _check_options(recall_at, knn_k, knn_temperature, chunk_size)
    faiss = require_faiss()
    gpu = isinstance(reference, torch.Tensor) and reference.is_cuda
    queries = as_embeddings(query, "query", dtype=np.float32)
    references = as_embeddings(reference, "reference", dtype=np.float32)
    check_same_width(queries, "query", references, "reference")
    wanted = as_labels(query_labels, "query_labels", len(queries))
    labels = as_labels(reference_labels, "reference_labels", len(references))
    if ref_includes_query:
        _check_starts_with_queries(queries, wanted, references, labels)

    relevant = _count_relevant(wanted, labels) - int(ref_includes_query)
    kept = np.flatnonzero(relevant > 0)
    if len(kept) == 0:
        raise ValueError(f"Expected a query with a relevant reference, but none of the {len(queries)} has one.")
    available = len(references) - int(ref_includes_query)
    _warn_of_few(available, recall_at=max(recall_at, default=1), knn_k=knn_k)
    k = min(available, max(int(relevant.max()), knn_k, *recall_at))

    index = build_index(faiss, references, k=k + int(ref_includes_query), gpu=gpu)
    parts = []
    for rows in split_rows(kept, k=k, width=queries.shape[1], chunk_size=chunk_size):
        distances, neighbours = search(index, queries[rows], k, own=rows if ref_includes_query else None)
        found = labels[neighbours]
        scores = ranking_scores(found == wanted[rows, None], relevant[rows], recall_at)
        scores["knn_accuracy"] = knn_vote(found[:, :knn_k], distances[:, :knn_k], knn_temperature) == wanted[rows]
        parts.append(scores)
    means = {name: float(np.concatenate([part[name] for part in parts]).mean()) for name in parts[0]}
    return means | {"lone_queries": float(len(queries) - len(kept))}


class RetrievalTester(GlobalEmbeddingSpaceTester):
    """PML tester that reports `retrieval_metrics`, under keys such as ``precision_at_1_level0``.

    Args:
        recall_at: As for `retrieval_metrics`.
        knn_k: As for `retrieval_metrics`.
        knn_temperature: As for `retrieval_metrics`.
        chunk_size: As for `retrieval_metrics`.
        **tester_kwargs: Options of PML's ``BaseTester`` other than ``accuracy_calculator``. PML normalises
            the embeddings unless ``normalize_embeddings=False``.

    Raises:
        ImportError: If FAISS is not installed: here, before any embedding is computed.
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of range.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        >>> tester = RetrievalTester(knn_k=1, recall_at=(1, 3), dataloader_num_workers=0, data_device="cpu")
        >>> tester.test({"val": data}, epoch=1, trunk_model=torch.nn.Identity())["val"]["recall_at_3_level0"]
        1.0
    """

    def __init__(
        self,
        *,
        recall_at: Sequence[int] = RECALL_AT,
        knn_k: int = KNN_K,
        knn_temperature: float = KNN_TEMPERATURE,
        chunk_size: int | None = None,
        **tester_kwargs: Any,
    ) -> None:
        require_faiss()
        _check_options(recall_at, knn_k, knn_temperature, chunk_size)
        compute = partial(
            retrieval_metrics,
            recall_at=tuple(recall_at),
            knn_k=knn_k,
            knn_temperature=knn_temperature,
            chunk_size=chunk_size,
        )
        super().__init__(accuracy_calculator=FunctionCalculator(_metric_names(recall_at), compute), **tester_kwargs)


def _metric_names(recall_at: Sequence[int]) -> list[str]:
    recalls = [f"recall_at_{k}" for k in recall_at]
    return [
        "precision_at_1",
        *recalls,
        "r_precision",
        "mean_average_precision_at_r",
        "knn_accuracy",
        "lone_queries",
    ]


def _check_options(recall_at: Sequence[int], knn_k: int, knn_temperature: float, chunk_size: int | None) -> None:
    if not isinstance(recall_at, Sequence) or isinstance(recall_at, str):
        raise TypeError(f"Expected argument `recall_at` to be a sequence of integers, but got {recall_at!r}.")
    for k in recall_at:
        check_count(k, "recall_at")
    check_count(knn_k, "knn_k")
    check_positive(knn_temperature, "knn_temperature")
    if chunk_size is not None:
        check_count(chunk_size, "chunk_size")


def _check_starts_with_queries(queries: Floats, wanted: Labels, references: Floats, labels: Labels) -> None:
    start = slice(len(queries))
    # Embeddings may have been computed twice, in batches of another size: equal up to rounding, as PML asks.
    if (
        len(queries) > len(references)
        or not np.array_equal(wanted, labels[start])
        or not np.allclose(queries, references[start])
    ):
        raise ValueError(
            "Expected argument `reference` to start with the queries, and `reference_labels` with their "
            "labels, since `ref_includes_query` is set, but got others "
            f"({len(queries)} queries, {len(references)} references)."
        )


def _count_relevant(wanted: Labels, labels: Labels) -> Labels:
    """References with the label of each query, ``(N,)``."""
    values, counts = np.unique(labels, return_counts=True)
    place = np.searchsorted(values, wanted).clip(max=len(values) - 1)
    return np.where(values[place] == wanted, counts[place], 0)


def _warn_of_few(available: int, **asked: int) -> None:
    for name, k in asked.items():
        if k > available:
            logger.warning("`%s` asks for %d neighbours, but there are %d references: all count.", name, k, available)
