"""A PML tester that fits something on the reference splits and scores it on the query split."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester


class FittedTester(GlobalEmbeddingSpaceTester):
    """Refuses to score what is fitted on the rows that it was fitted on."""

    def get_splits_to_compute_embeddings(
        self, dataset_dict: dict[str, Any], splits_to_eval: list[tuple[str, list[str]]] | None
    ) -> Any:
        """PML asks for the splits first of all; a probe scored on what it was fitted on is refused here."""
        default = [(name, [name]) for name in dataset_dict]
        for query, references in default if splits_to_eval is None else splits_to_eval:
            if query in references:
                raise ValueError(
                    "Expected argument `splits_to_eval` to score the probe on a split it is not fitted on, "
                    f"but got query {query!r} with references {references}"
                    f"{'' if splits_to_eval else ' (the default)'}. "
                    'Pass splits_to_eval=[("test", ["train"])], with the names of your splits.'
                )
        return super().get_splits_to_compute_embeddings(dataset_dict, splits_to_eval)


def of_splits(score: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`score(reference, reference_labels, query, query_labels, **options)` as `FunctionCalculator` calls it."""

    def compute(
        query: torch.Tensor,
        query_labels: torch.Tensor,
        reference: torch.Tensor,
        reference_labels: torch.Tensor,
        ref_includes_query: bool,  # refused before embeddings are computed
    ) -> Any:
        return score(reference, reference_labels, query, query_labels, **options)

    return compute
