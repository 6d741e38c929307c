"""The section "hard_mining": the share of the gradient of three losses by the hardness of pairs (implicit mining)."""

from dataclasses import dataclass
from typing import Any

from pml_supcon.evaluation.context import EvaluationContext, Output
from pml_supcon.functional.gradient_shares import LOSSES, MARGIN, TEMPERATURE
from pml_supcon.metrics.hard_mining import hard_mining_curve

BINS = 40  # the positives of a trained encoder have similar hardness


@dataclass(frozen=True, kw_only=True)
class HardMiningSection:
    """The results of the section "hard_mining".

    Attributes:
        losses: The result of ``hard_mining_curve`` for each loss.
        of: The rows that form the pairs: the outputs of the encoder, or of the projection head.
        temperature: The temperature of the supervised contrastive losses.
        margin: The margin of the triplet loss.
        batches: The number of batches.
        batch_size: The number of images in a batch.
    """

    losses: dict[str, dict[str, Any]]
    of: Output
    temperature: float
    margin: float
    batches: int
    batch_size: int


def hard_mining(context: EvaluationContext) -> HardMiningSection | None:
    """Compute the shares of the gradient in batches of test images, on the head's outputs if there is a head."""
    settings = context.settings
    output: Output = "head" if context.has_head else "encoder"
    features, labels = context.features("test", of=output), context.labels("test")
    if not context.is_main:
        return None
    kept = (features != 0).any(dim=1)
    features, labels = features[kept], labels[kept]
    if not kept.all():
        context.note(
            f"{int((~kept).sum())} of {len(kept)} test images have a zero row, which has no direction: the shares of "
            "the gradient leave them out."
        )
    batch_size = min(settings.mining_batch_size, len(labels))
    if batch_size < settings.mining_batch_size:
        context.note(
            f"Shares of the gradient are from batches of {batch_size} test images, not {settings.mining_batch_size}: "
            "there are no more."
        )
    batches = {"batches": settings.mining_batches, "batch_size": batch_size}
    options = {"bins": BINS, "seed": settings.seed, **batches}
    losses = {loss: hard_mining_curve(features, labels, loss=loss, **options) for loss in LOSSES}
    return HardMiningSection(losses=losses, of=output, temperature=TEMPERATURE, margin=MARGIN, **batches)
