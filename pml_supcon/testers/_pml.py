"""The one place that knows what PML's testers and its ``HookContainer`` ask of an accuracy calculator."""

from collections.abc import Callable, Sequence

import torch


class FunctionCalculator:
    """One metric function in the place of PML's ``AccuracyCalculator``.

    Args:
        metrics: The names that ``compute`` returns, in their order. PML averages over label levels and checks
            a hook's ``primary_metric`` by them.
        compute: Called by keyword with ``query``, ``query_labels``, ``reference``, ``reference_labels`` and
            ``ref_includes_query``; returns ``{metric: value}``.
    """

    def __init__(self, metrics: Sequence[str], compute: Callable[..., dict[str, float]]) -> None:
        self.metrics = tuple(metrics)
        self.compute = compute

    def get_accuracy(
        self,
        query: torch.Tensor,
        query_labels: torch.Tensor,
        reference: torch.Tensor,
        reference_labels: torch.Tensor,
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
        """Names of the metrics."""
        return list(self.metrics)

    def description(self) -> str:
        """What PML appends to the name of a record group: nothing."""
        return ""
