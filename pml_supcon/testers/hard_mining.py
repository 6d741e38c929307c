"""The PML tester of the hardness of pairs."""

import math
from functools import partial
from typing import Any

import torch
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester

from pml_supcon._checks import check_int
from pml_supcon._pml.testers import FunctionCalculator
from pml_supcon.functional.gradient_shares import MARGIN, TEMPERATURE, check_arguments
from pml_supcon.metrics.hard_mining import BATCHES, hard_mining_curve

#: The place of each metric in the summary of `hard_mining_curve`.
MEANS = {
    "positive_hardness": ("positives", "mean_hardness"),
    "positive_gradient_hardness": ("positives", "gradient_hardness"),
    "negative_hardness": ("negatives", "mean_hardness"),
    "negative_gradient_hardness": ("negatives", "gradient_hardness"),
}


class HardMiningTester(GlobalEmbeddingSpaceTester):
    """A PML tester that reports the mean hardness of the pairs of a split, unweighted and weighted by gradient.

    Its metrics, under keys such as ``positive_hardness_level0``, are the ``mean_hardness`` and ``gradient_hardness`` of
    `hard_mining_curve`: ``positive_hardness``, ``positive_gradient_hardness``, ``negative_hardness`` and
    ``negative_gradient_hardness``; NaN where no anchor receives a gradient. For the curve itself, call it on the
    embeddings (``get_all_embeddings``).

    Args:
        loss: "supcon_out", "supcon_in" or "triplet".
        temperature: Temperature of the supcon losses, above 0.
        margin: Margin of "triplet", at least 0.
        pair_batch_size: Rows of a batch of `hard_mining_curve`, None for all; ``batch_size`` is PML's, of the images.
        batches: Number of batches drawn, at least 1.
        seed: Seed of the draws, at least 0.
        **tester_kwargs: Options of PML's ``BaseTester`` other than ``accuracy_calculator``.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of range; from ``test``, if a split has references other than itself.

    Examples:
        >>> angles = torch.tensor([0.0, 0.5, 1.5, 3.0])
        >>> rows = torch.stack([angles.cos(), angles.sin()], dim=1)
        >>> data = torch.utils.data.TensorDataset(rows, torch.tensor([0, 0, 0, 1]))
        >>> tester = HardMiningTester(dataloader_num_workers=0, data_device="cpu")
        >>> found = tester.test({"val": data}, epoch=1, trunk_model=torch.nn.Identity())["val"]
        >>> found["positive_gradient_hardness_level0"] > found["positive_hardness_level0"]
        True
    """

    def __init__(
        self,
        *,
        loss: str = "supcon_out",
        temperature: float = TEMPERATURE,
        margin: float = MARGIN,
        pair_batch_size: int | None = None,
        batches: int = BATCHES,
        seed: int = 0,
        **tester_kwargs: Any,
    ) -> None:
        check_arguments(torch.ones(1, 1), torch.zeros(1, dtype=torch.int64), loss, temperature, margin)
        check_int("batches", batches, low=1)
        check_int("seed", seed, low=0)
        if pair_batch_size is not None:
            check_int("pair_batch_size", pair_batch_size, low=1)
        options: dict[str, Any] = {"loss": loss, "temperature": temperature, "margin": margin, "seed": seed}
        options |= {"bins": 1, "batch_size": pair_batch_size, "batches": batches}
        compute = partial(_hardness, options)
        super().__init__(accuracy_calculator=FunctionCalculator(tuple(MEANS), compute), **tester_kwargs)

    def get_splits_to_compute_embeddings(
        self, dataset_dict: dict[str, Any], splits_to_eval: list[tuple[str, list[str]]] | None
    ) -> Any:
        """Return PML's splits; raise where a split has references other than itself, which would have no effect."""
        for query, references in splits_to_eval or []:
            if list(references) != [query]:
                raise ValueError(
                    "Expected argument `splits_to_eval` to give every split itself as the only reference, but got "
                    f"query {query!r} with references {references}"
                )
        return super().get_splits_to_compute_embeddings(dataset_dict, splits_to_eval)


def _hardness(
    options: dict[str, Any], *, query: torch.Tensor, query_labels: torch.Tensor, **references: Any
) -> dict[str, float]:
    summary = hard_mining_curve(query, query_labels, **options)["summary"]
    found = {name: summary[kind][mean] for name, (kind, mean) in MEANS.items()}
    return {name: math.nan if value is None else value for name, value in found.items()}
