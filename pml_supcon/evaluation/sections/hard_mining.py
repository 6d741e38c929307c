"""Implicit hard mining: where the gradient of three losses goes, by the hardness of pairs of test images."""

from typing import Any, Literal

from pml_supcon.evaluation.context import EvaluationContext
from pml_supcon.functional.gradient_shares import LOSSES, MARGIN, TEMPERATURE
from pml_supcon.metrics.hard_mining import hard_mining_curve

BINS = 40  # a trained model's positives lie close together


def hard_mining(context: EvaluationContext) -> dict[str, Any] | None:
    """Shares of the gradient within batches drawn from the test images, of the head's rows where there is a head."""
    output: Literal["encoder", "head"] = "head" if context.has_head else "encoder"
    features, labels = context.features("test", of=output), context.labels("test")
    if not context.is_main:
        return None
    kept = (features != 0).any(dim=1)
    features, labels = features[kept], labels[kept]
    if not kept.all():
        context.note(
            f"{int((~kept).sum())} of {len(kept)} test images have a zero row, which has no direction: they are left "
            "out of the shares of the gradient."
        )
    wanted = context.settings.mining_batch_size
    batch_size = min(wanted, len(labels))
    if batch_size < wanted:
        context.note(f"Shares of the gradient are from batches of {batch_size} test images, not {wanted}: all of them.")
    curves = {
        loss: hard_mining_curve(
            features,
            labels,
            loss=loss,
            bins=BINS,
            batch_size=batch_size,
            batches=context.settings.mining_batches,
            seed=context.settings.seed,
        )
        for loss in LOSSES
    }
    return {
        "losses": curves,
        "of": output,
        "temperature": TEMPERATURE,
        "margin": MARGIN,
        "batches": context.settings.mining_batches,
        "batch_size": batch_size,
    }
