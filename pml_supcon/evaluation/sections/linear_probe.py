"""The section "linear_probe": linear classifiers of the frozen features, with all labels and with few."""

from dataclasses import dataclass, replace
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from pml_supcon.data.splits import stratified_subset
from pml_supcon.evaluation.context import EvaluationContext, note_missing_classes, warnings_as_notes
from pml_supcon.evaluation.sections.augmented_probe import train_augmented_probe
from pml_supcon.metrics.few_shot import FewShotResult, few_shot_metrics
from pml_supcon.metrics.learning_curves import learning_curve
from pml_supcon.metrics.linear_probe import fit_linear_probe, probe_logits, score_linear_probe
from pml_supcon.metrics.logistic import INVERSE_L2
from pml_supcon.metrics.probe_selection import choose_inverse_l2
from pml_supcon.training.scoring import PROBES, Embedded, classifier_metrics

#: For raw features and 256 images a batch, by optimizer. LARS scales its learning rate down by about 1,000.
PROBE_LEARNING_RATES = {"lars": 10.0, "sgd": 1.0}
PROBE_LEARNING_RATE = 0.01


class CurvePoint(TypedDict):
    """The accuracies of a probe on a share of the labels, and the number of these images."""

    share: float
    images: int
    top1: float
    top5: float


@dataclass(frozen=True, kw_only=True)
class AugmentedProbe:
    """The results of the probe that is trained on augmented images."""

    optimizer: str
    epochs: int
    metrics: dict[str, float]
    learning_curve: list[CurvePoint]


@dataclass(frozen=True, kw_only=True)
class LinearProbeSection:
    """The results of the section "linear_probe".

    Attributes:
        metrics: The accuracies ``top1`` and ``top5`` with all labels; for labels other than classes, the scores that
            ``train.py`` records, without the fields below.
        inverse_l2: The inverse of the L2 penalty; None for labels other than classes, whose probes choose their own.
        tried: The held-out accuracy by ``inverse_l2``; empty if the settings give the penalty.
        per_class: The top-1 accuracy by class.
        learning_curve: The accuracies with a share of the labels.
        few_shot: The accuracies with a few labels per class.
        augmented: The probe on augmented images, where ``settings.probe_optimizer`` asks for one.
    """

    metrics: dict[str, float]
    inverse_l2: float | None
    tried: dict[str, float]
    per_class: dict[str, float | None]
    learning_curve: list[CurvePoint]
    few_shot: list[FewShotResult]
    augmented: AugmentedProbe | None = None


def linear_probe(context: EvaluationContext) -> LinearProbeSection | None:
    """Score linear probes of the encoder's features.

    The penalty is ``settings.inverse_l2``; by default it is chosen on held-out training images. The learning curve uses
    ``settings.inverse_l2`` or `INVERSE_L2`, so that no label influences its penalty. Test images of a class that train
    lacks count as errors.

    Returns:
        The section; None on all processes but the main one.
    """
    if context.data.labels_are != "classes":
        return _probe_of_labels(context)
    settings = context.settings
    train, test = context.features("train"), context.features("test")
    test_labels = context.labels("test")
    augmented = None
    if settings.probe_optimizer is not None:
        augmented = _augmented_probe(context, settings.probe_optimizer, test, test_labels)
    if not context.is_main:
        return None
    train_labels = context.labels("train")
    note_missing_classes(
        context, train_labels, test_labels, "they count as errors of the linear probe and of few-shot accuracy"
    )
    with warnings_as_notes(context, "Linear probe"):
        inverse_l2, tried = _choose_penalty(context, train, train_labels)
        probe = fit_linear_probe(train, train_labels, inverse_l2=inverse_l2)
        predicted = probe.classes_[probe_logits(probe, test).argmax(axis=1)]  # (N,)
        rows = train, train_labels, test, test_labels
        fixed = settings.inverse_l2 or INVERSE_L2  # no label influences this penalty
        curve = learning_curve(*rows, shares=settings.shares, seed=settings.seed, inverse_l2=fixed)
    return LinearProbeSection(
        metrics=score_linear_probe(probe, test, test_labels),
        inverse_l2=inverse_l2,
        tried={f"{value:g}": accuracy for value, accuracy in tried.items()},
        per_class={
            context.data.class_names[label]: float((predicted == label)[test_labels.numpy() == label].mean())
            for label in test_labels.unique().tolist()
        },
        learning_curve=[
            CurvePoint(share=point["share"], images=point["rows"], top1=point["top1"], top5=point["top5"])
            for point in curve
        ],
        few_shot=_few_shot(context, *rows),
        augmented=augmented,
    )


def _probe_of_labels(context: EvaluationContext) -> LinearProbeSection | None:
    """Score a linear probe of sets, soft labels or numbers."""
    features = context.features("train"), context.features("test")
    if not context.is_main:
        return None
    train = Embedded(features[0], F.normalize(features[0]), context.labels("train"))
    test = Embedded(features[1], F.normalize(features[1]), context.labels("test"))
    with warnings_as_notes(context, "Linear probe"):
        metrics = PROBES[context.data.labels_are](train, test, train.labels, context.settings.seed)
    chosen = metrics.pop("inverse_l2", None)
    return LinearProbeSection(
        metrics=metrics, inverse_l2=chosen, tried={}, per_class={}, learning_curve=[], few_shot=[]
    )


def _augmented_probe(
    context: EvaluationContext, optimizer: str, test: Tensor, test_labels: Tensor
) -> AugmentedProbe | None:
    """Train a probe on augmented images for each share of the labels, and score it on the main process."""
    settings, data = context.settings, context.data
    rate = settings.probe_learning_rate or PROBE_LEARNING_RATES.get(optimizer, PROBE_LEARNING_RATE)
    labels, curve = data.train_labels, list[CurvePoint]()
    for share in sorted({1.0, *settings.shares}):
        count = max(len(labels.unique()), round(share * len(labels)))
        rows = torch.tensor(stratified_subset(labels, count, settings.seed))
        classifier = train_augmented_probe(
            context.loaded.model,
            replace(data, train=data.train.select(rows, labels[rows])),
            context.accelerator,
            optimizer=optimizer,
            epochs=settings.probe_epochs,
            learning_rate=rate * settings.probe_batch_size / 256,
            batch_size=settings.probe_batch_size,
            seed=settings.seed,
            workers=settings.workers,
        )
        if context.is_main:
            scores = classifier_metrics(classifier, test, test_labels)
            curve.append({"share": share, "images": count, "top1": scores["top1"], "top5": scores["top5"]})
    if not context.is_main:
        return None
    metrics = {"top1": curve[-1]["top1"], "top5": curve[-1]["top5"]}
    return AugmentedProbe(optimizer=optimizer, epochs=settings.probe_epochs, metrics=metrics, learning_curve=curve)


def _choose_penalty(
    context: EvaluationContext, train: Tensor, train_labels: Tensor
) -> tuple[float, dict[float, float]]:
    """Return the settings' ``inverse_l2`` or the best on held-out images, and the held-out scores of the candidates."""
    if context.settings.inverse_l2 is not None:
        return context.settings.inverse_l2, {}
    choice = choose_inverse_l2(train, train_labels, seed=context.settings.seed)
    if choice.at_edge:
        context.note(
            f"The penalty of the linear probe, inverse_l2={choice.inverse_l2:g}, is at the edge of the candidates: a "
            "better value may be outside their range."
        )
    return choice.inverse_l2, choice.tried


def _few_shot(
    context: EvaluationContext, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor
) -> list[FewShotResult]:
    """Compute few-shot accuracies; note and leave out the numbers of shots that a class has too few images for."""
    settings = context.settings
    counts = train_labels.bincount(minlength=context.data.num_classes)
    smallest_class = int(counts.where(counts > 0, counts.max()).argmin())
    fewest = int(counts[smallest_class])
    shots = [k for k in settings.shots if k <= fewest]
    if left_out := [k for k in settings.shots if k > fewest]:
        context.note(
            f"Few-shot accuracy is left out for {', '.join(map(str, left_out))} shots: the class "
            f"{context.data.class_names[smallest_class]} has {fewest} training images."
        )
    rows = train, train_labels, test, test_labels
    return few_shot_metrics(*rows, shots=shots, draws=settings.draws, seed=settings.seed)
