"""The PML tester of retrieval."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester

from pml_supcon._checks import check_bool
from pml_supcon._pml.testers import FunctionCalculator
from pml_supcon.metrics.clustering import clustering_metrics
from pml_supcon.metrics.retrieval import (
    KNN_K,
    KNN_TEMPERATURE,
    RECALL_AT,
    check_retrieval_options,
    metric_names,
    retrieval_metrics,
)


class RetrievalTester(GlobalEmbeddingSpaceTester):
    """A PML tester that reports `retrieval_metrics`, under keys such as ``precision_at_1_level0``.

    Args:
        recall_at: The k of ``recall_at_k``, each at least 1.
        knn_k: Number of neighbours that vote, at least 1.
        knn_temperature: Temperature of the vote, above 0; ``math.inf`` gives the unweighted majority.
        at_r: Report ``r_precision`` and ``mean_average_precision_at_r``.
        index: "exact", or an approximate index (see `INDEXES`); `index_recall` measures its share of true neighbours.
        chunk_size: Queries searched at a time; None chooses it so that a chunk stays below about 64 MiB.
        clustering: Report `clustering_metrics` of the queries too.
        **tester_kwargs: Options of PML's ``BaseTester`` other than ``accuracy_calculator``. PML normalises
            the embeddings unless ``normalize_embeddings=False``.

    Raises:
        ImportError: If FAISS is not installed, before any embedding is computed.
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of range.

    Examples:
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
        at_r: bool = True,
        index: str = "exact",
        chunk_size: int | None = None,
        clustering: bool = False,
        **tester_kwargs: Any,
    ) -> None:
        check_retrieval_options(recall_at, knn_k, knn_temperature, at_r, chunk_size, index)
        check_bool("clustering", clustering)
        options: dict[str, Any] = {"recall_at": tuple(recall_at), "knn_k": knn_k, "knn_temperature": knn_temperature}
        options |= {"at_r": at_r, "index": index, "chunk_size": chunk_size}

        compute = partial(_with_clustering if clustering else retrieval_metrics, **options)
        names = [*metric_names(recall_at, at_r), "lone_queries", "zero_rows", *(["nmi", "ami"] if clustering else [])]
        super().__init__(accuracy_calculator=FunctionCalculator(names, compute), **tester_kwargs)


def _with_clustering(query: torch.Tensor, query_labels: torch.Tensor, **others: Any) -> dict[str, float]:
    return retrieval_metrics(query, query_labels, **others) | clustering_metrics(query, query_labels)
