"""PML's accuracy calculator and tester as the testers of this package need them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from torch import Tensor


class FunctionCalculator:
    """A metric function with the interface of PML's ``AccuracyCalculator``.

    Args:
        metrics: The names that ``compute`` returns, in their order. PML averages over label levels and checks
            a hook's ``primary_metric`` by them.
        compute: Called by keyword with ``query``, ``query_labels``, ``reference``, ``reference_labels`` and
            ``ref_includes_query``; returns ``{metric: value}``. A function of a module, or ``functools.partial`` of
            one, so that testers can be pickled.
    """

    def __init__(self, metrics: Sequence[str], compute: Callable[..., dict[str, float]]) -> None:
        self.metrics = tuple(metrics)
        self.compute = compute

    def get_accuracy(
        self,
        query: Tensor,
        query_labels: Tensor,
        reference: Tensor,
        reference_labels: Tensor,
        ref_includes_query: bool = False,
    ) -> dict[str, float]:
        """Compute the metrics of one query split against its reference splits."""
        return self.compute(
            query=query,
            query_labels=query_labels,
            reference=reference,
            reference_labels=reference_labels,
            ref_includes_query=ref_includes_query,
        )

    def get_curr_metrics(self) -> list[str]:
        """Return the names of the metrics."""
        return list(self.metrics)

    def description(self) -> str:
        """Return the suffix that PML appends to the name of a record group: an empty string."""
        return ""


class FittedTester(GlobalEmbeddingSpaceTester):
    """A PML tester that fits a model on the reference splits and scores it on the query split.

    A query split among its own references is an error.
    """

    def get_splits_to_compute_embeddings(
        self, dataset_dict: dict[str, Any], splits_to_eval: list[tuple[str, list[str]]] | None
    ) -> Any:
        """Return PML's splits to embed, or raise if a split is scored by a model that was fitted on it.

        PML calls this first of all, before it computes embeddings.
        """
        default = [(name, [name]) for name in dataset_dict]
        for query, references in default if splits_to_eval is None else splits_to_eval:
            if query in references:
                raise ValueError(
                    "Expected argument `splits_to_eval` to score the probe on a split it is not fitted on, "
                    f"but got query {query!r} with references {references}"
                    f"{'' if splits_to_eval else ' (the default)'}. "
                    'Pass splits_to_eval=[("test", ["train"])], with the names of your splits'
                )
        return super().get_splits_to_compute_embeddings(dataset_dict, splits_to_eval)


def of_splits(score: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Adapt ``score(reference, reference_labels, query, query_labels, **options)`` to ``FunctionCalculator``."""
    return partial(_score_splits, score, options)  # no local function: testers are pickled


def _score_splits(
    score: Callable[..., Any],
    options: dict[str, Any],
    *,
    query: Tensor,
    query_labels: Tensor,
    reference: Tensor,
    reference_labels: Tensor,
    ref_includes_query: bool = False,  # `FittedTester` has raised an error before if they do
) -> Any:
    return score(reference, reference_labels, query, query_labels, **options)
