"""The section "transfer": the encoder on other data sets, by a linear probe and by k-NN on each."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch.nn.functional as F

from pml_supcon.data.images import ImageData
from pml_supcon.data.load import OpenedData, open_data
from pml_supcon.evaluation.context import EvaluationContext
from pml_supcon.evaluation.notes import note_missing_classes, warnings_as_notes
from pml_supcon.evaluation.settings import EvaluateSettings
from pml_supcon.metrics import choose_inverse_l2, linear_probe_metrics, retrieval_scores


def transfer(context: EvaluationContext) -> list[dict[str, Any]] | None:
    """Score the frozen encoder on each data set of `settings.transfer`, which has its own classes."""
    rows = [transfer_to(context, spec) for spec in context.settings.transfer]
    return [row for row in rows if row is not None] if context.is_main else None


def transfer_to(context: EvaluationContext, spec: str) -> dict[str, Any] | None:
    """One data set: the probe, its penalty chosen on held-out training images, and weighted k-NN."""
    there = replace(context, data=open_for(context, spec), fingerprints={}, plain={})
    train, test = there.features("train"), there.features("test")
    if not context.is_main:
        return None
    settings, learnt, wanted = context.settings, there.labels("train"), there.labels("test")
    with warnings_as_notes(context, f"Transfer to {spec}"):
        penalty = settings.inverse_l2 or choose_inverse_l2(train, learnt, seed=settings.seed)[0]
    note_missing_classes(
        there, learnt, wanted, f"in {spec} they count as errors of the probe, and k-NN leaves them out"
    )
    scores = retrieval_scores(
        F.normalize(test),
        wanted,
        F.normalize(train),
        learnt,
        knn_k=settings.knn_k,
        knn_temperature=settings.knn_temperature,
        at_r=False,
    )
    return {
        "data": spec,
        "linear_probe": linear_probe_metrics(train, learnt, test, wanted, inverse_l2=penalty),
        "knn_accuracy": float(np.nanmean(scores["knn_accuracy"])),
        "classes": there.data.num_classes,
        "train": len(learnt),
        "test": len(wanted),
    }


def open_for(context: EvaluationContext, spec: str) -> ImageData:
    """A data set at the size and by the normalisation of the encoder; one process downloads it first."""
    with context.accelerator.main_process_first():
        opened = open_images(spec, context.settings, image_size=context.data.image_size)
        data = opened.decode()
    return context.loaded.adapt_data(data)


def open_images(spec: str, settings: EvaluateSettings, *, image_size: int | None = None) -> OpenedData:
    """A data set without its images, of which at most so many are used as of the others."""
    return open_data(
        spec, image_size=image_size, max_train=settings.max_train, max_test=settings.max_test, new_classes="some"
    )
