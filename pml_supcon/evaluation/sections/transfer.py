"""The section "transfer": a linear probe and k-NN of the frozen encoder on other data sets."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch.nn.functional as F

from pml_supcon.data.load import OpenedData, open_data
from pml_supcon.evaluation.context import EvaluationContext, note_missing_classes, warnings_as_notes
from pml_supcon.evaluation.settings import EvaluateSettings
from pml_supcon.metrics import choose_inverse_l2, linear_probe_metrics, retrieval_scores
from pml_supcon.training.run import print_data_summary


@dataclass(frozen=True, kw_only=True)
class TransferResult:
    """The results on one data set.

    Attributes:
        data: The data set, as for ``--data``.
        linear_probe: The accuracies ``top1`` and ``top5`` of a linear probe.
        knn_accuracy: The accuracy of weighted k-NN classification.
        classes: The number of classes.
        train: The number of training images.
        test: The number of test images.
    """

    data: str
    linear_probe: dict[str, float]
    knn_accuracy: float
    classes: int
    train: int
    test: int


def transfer(context: EvaluationContext) -> list[TransferResult] | None:
    """Score the frozen encoder on each data set of ``settings.transfer``, which has its own classes."""
    results = [transfer_to(context, spec) for spec in context.settings.transfer]
    return [result for result in results if result is not None] if context.is_main else None


def transfer_to(context: EvaluationContext, spec: str) -> TransferResult | None:
    """Score one data set; the probe's penalty is chosen on held-out training images unless the settings have one."""
    with context.accelerator.main_process_first():  # one process downloads
        opened = open_images(spec, context.settings, image_size=context.data.image_size)
        if context.settings.broken_images == "replace":
            opened = opened.with_replaced(opened.find_broken())
            if opened.replaced:
                context.note(
                    f"{spec}: the next image of the class is read in place of {opened.replaced} broken images."
                )
        data = opened.decode()
    other = replace(context, data=context.loaded.adapt_data(data))
    train, test = other.features("train"), other.features("test")
    if not context.is_main:
        return None
    settings, train_labels, test_labels = context.settings, other.labels("train"), other.labels("test")
    with warnings_as_notes(context, f"Transfer to {spec}"):
        penalty = settings.inverse_l2 or choose_inverse_l2(train, train_labels, seed=settings.seed)[0]
    note_missing_classes(
        other, train_labels, test_labels, f"in {spec} they count as errors of the probe, and k-NN leaves them out"
    )
    rows = F.normalize(test), test_labels, F.normalize(train), train_labels
    options: dict[str, Any] = {"knn_k": settings.knn_k, "knn_temperature": settings.knn_temperature}
    scores = retrieval_scores(*rows, **options, at_r=False)
    return TransferResult(
        data=spec,
        linear_probe=linear_probe_metrics(train, train_labels, test, test_labels, inverse_l2=penalty),
        knn_accuracy=float(np.nanmean(scores["knn_accuracy"])),
        classes=other.data.num_classes,
        train=len(train_labels),
        test=len(test_labels),
    )


def open_images(spec: str, settings: EvaluateSettings, *, image_size: int | None = None) -> OpenedData:
    """Open a data set without decoding its images, with the settings' limits on their number; print what was read."""
    opened = open_data(
        spec, image_size=image_size, max_train=settings.max_train, max_test=settings.max_test, new_classes="some"
    )
    print_data_summary(opened)
    return opened
