"""The section "linear_probe": a linear classifier on the frozen features, with all labels and with few."""

from dataclasses import replace
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from pml_supcon.data.splits import stratified_subset
from pml_supcon.evaluation.context import EvaluationContext
from pml_supcon.evaluation.notes import note_missing_classes, warnings_as_notes
from pml_supcon.evaluation.sections.augmented_probe import train_augmented_probe
from pml_supcon.metrics.few_shot import FewShotResult, few_shot_metrics
from pml_supcon.metrics.learning_curves import learning_curve
from pml_supcon.metrics.linear_probe import fit_linear_probe, probe_logits, score_linear_probe
from pml_supcon.metrics.logistic import INVERSE_L2
from pml_supcon.metrics.probe_selection import choose_inverse_l2
from pml_supcon.training.scoring import classifier_metrics

#: Of raw features and 256 images a batch: where each does well on them. LARS takes a thousandth of its rate a step.
PROBE_LEARNING_RATES = {"lars": 10.0, "sgd": 1.0}
PROBE_LEARNING_RATE = 0.01


def linear_probe(context: EvaluationContext) -> dict[str, Any] | None:
    """Score linear probes of the encoder's features; the augmented one too where `settings.probe_optimizer` names one.

    The penalty is that of `settings.inverse_l2`, else chosen on held-out training images. The learning curve has one
    that no label has chosen: that of `settings.inverse_l2`, else `INVERSE_L2`. Test images of a class that train lacks
    count as errors.

    Args:
        context: what is evaluated.

    Returns:
        The section; None on other processes than the main one.
    """
    settings = context.settings
    train, test = context.features("train"), context.features("test")
    optimizer = settings.probe_optimizer
    augmented = _augmented(context, optimizer) if optimizer is not None else []
    if not context.is_main:
        return None
    learnt, wanted = context.labels("train"), context.labels("test")
    note_missing_classes(context, learnt, wanted, "they count as errors of the linear probe and of few-shot accuracy")
    with warnings_as_notes(context, "Linear probe"):
        inverse_l2, tried = _penalty(context, train, learnt)
        probe = fit_linear_probe(train, learnt, inverse_l2=inverse_l2)
        found = probe.classes_[probe_logits(probe, test).argmax(axis=1)]
        curve = learning_curve(
            train,
            learnt,
            test,
            wanted,
            shares=settings.shares,
            seed=settings.seed,
            inverse_l2=INVERSE_L2 if settings.inverse_l2 is None else settings.inverse_l2,
        )
    section = {
        "metrics": score_linear_probe(probe, test, wanted),
        "inverse_l2": inverse_l2,
        "tried": {f"{value:g}": accuracy for value, accuracy in tried.items()},
        "per_class": {
            context.data.class_names[label]: float((found == label)[wanted.numpy() == label].mean())
            for label in wanted.unique().tolist()
        },
        "learning_curve": [
            {"share": point["share"], "images": point["rows"], "top1": point["top1"], "top5": point["top5"]}
            for point in curve
        ],
        "few_shot": _few_shot(context, train, learnt, test, wanted),
    }
    if augmented:
        scores = [(share, count, classifier_metrics(each, test, wanted)) for share, count, each in augmented]
        section["augmented"] = {
            "optimizer": optimizer,
            "epochs": settings.probe_epochs,
            "metrics": scores[0][2],
            "learning_curve": [
                {"share": share, "images": count, **found} for share, count, found in sorted(scores, key=itemgetter(0))
            ],
        }
    return section


def _augmented(context: EvaluationContext, optimizer: str) -> list[tuple[float, int, nn.Linear]]:
    """The probe that is trained on augmented images with each share of the labels, all of them first."""
    settings, data = context.settings, context.data
    rate = settings.probe_learning_rate or PROBE_LEARNING_RATES.get(optimizer, PROBE_LEARNING_RATE)
    labels, trained = data.train_labels, []
    for share in (1.0, *(share for share in settings.shares if share < 1)):
        count = max(len(labels.unique()), round(share * len(labels)))
        rows = torch.tensor(stratified_subset(labels, count, settings.seed))
        classifier = train_augmented_probe(
            context.encoder,
            replace(data, train=data.train.select(rows, labels[rows])),
            context.accelerator,
            optimizer=optimizer,
            epochs=settings.probe_epochs,
            learning_rate=rate * settings.probe_batch_size / 256,
            batch_size=settings.probe_batch_size,
            seed=settings.seed,
            workers=settings.workers,
        )
        trained.append((share, count, classifier))
    return trained


def _penalty(context: EvaluationContext, train: Tensor, learnt: Tensor) -> tuple[float, dict[float, float]]:
    """The value that the settings name, or that held-out images choose, and what was tried."""
    if context.settings.inverse_l2 is not None:
        return context.settings.inverse_l2, {}
    choice = choose_inverse_l2(train, learnt, seed=context.settings.seed)
    if choice.inverse_l2 in (min(choice.tried), max(choice.tried)):
        context.note(
            f"The penalty of the linear probe, inverse_l2={choice.inverse_l2:g}, is at the edge of those that were "
            "tried: a better one may lie beyond."
        )
    return choice.inverse_l2, choice.tried


def _few_shot(
    context: EvaluationContext, train: Tensor, learnt: Tensor, test: Tensor, wanted: Tensor
) -> list[FewShotResult]:
    """Without the shots that a class has too few training images for, which is told."""
    settings = context.settings
    counts = learnt.bincount(minlength=context.data.num_classes)
    scarcest = int(counts.where(counts > 0, counts.max()).argmin())
    fewest = int(counts[scarcest])
    shots = [k for k in settings.shots if k <= fewest]
    if left := [k for k in settings.shots if k > fewest]:
        context.note(
            f"Few-shot accuracy is left out for {', '.join(map(str, left))} shots: the class "
            f"{context.data.class_names[scarcest]} has {fewest} training images."
        )
    return few_shot_metrics(train, learnt, test, wanted, shots=shots, draws=settings.draws, seed=settings.seed)
