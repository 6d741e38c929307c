"""The section "linear_probe": a linear classifier on the frozen features, with all labels and with few."""

from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pml_supcon.data.subsets import stratified_subset
from pml_supcon.evaluation.notes import tell_missing_classes, telling_warnings
from pml_supcon.evaluation.sections.augmented_probe import train_augmented_probe
from pml_supcon.metrics.few_shot import FewShotResult, few_shot_metrics
from pml_supcon.metrics.learning_curves import learning_curve
from pml_supcon.metrics.linear_probe import fit_linear_probe, probe_logits, score_linear_probe
from pml_supcon.metrics.logistic import INVERSE_L2
from pml_supcon.metrics.probe_selection import choose_inverse_l2
from pml_supcon.training.scoring import classifier_metrics

if TYPE_CHECKING:
    from pml_supcon.evaluation.context import Subject

#: Of raw features and 256 images a batch: where each does well on them. LARS takes a thousandth of its rate a step.
PROBE_LEARNING_RATES = {"lars": 10.0, "sgd": 1.0}
PROBE_LEARNING_RATE = 0.01


def linear_probe(subject: "Subject") -> dict[str, Any] | None:
    """Score linear probes of the encoder's features; the augmented one too where `settings.probe_optimizer` names one.

    The penalty is that of `settings.inverse_l2`, else chosen on held-out training images. The learning curve has one
    that no label has chosen: that of `settings.inverse_l2`, else `INVERSE_L2`. Test images of a class that train lacks
    count as errors.

    Args:
        subject: what is evaluated.

    Returns:
        The section; None on other processes than the main one.
    """
    settings = subject.settings
    train, test = subject.features("train"), subject.features("test")
    optimizer = settings.probe_optimizer
    augmented = _augmented(subject, optimizer) if optimizer is not None else []
    if not subject.is_main:
        return None
    learnt, wanted = subject.labels("train"), subject.labels("test")
    tell_missing_classes(subject, learnt, wanted, "they count as errors of the linear probe and of few-shot accuracy")
    with telling_warnings(subject, "Linear probe"):
        inverse_l2, tried = _penalty(subject, train, learnt)
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
            subject.data.class_names[label]: float((found == label)[wanted.numpy() == label].mean())
            for label in wanted.unique().tolist()
        },
        "learning_curve": [
            {"share": point["share"], "images": point["rows"], "top1": point["top1"], "top5": point["top5"]}
            for point in curve
        ],
        "few_shot": _few_shot(subject, train, learnt, test, wanted),
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


def _augmented(subject: "Subject", optimizer: str) -> list[tuple[float, int, nn.Linear]]:
    """The probe that is trained on augmented images with each share of the labels, all of them first."""
    settings, data = subject.settings, subject.data
    rate = settings.probe_learning_rate or PROBE_LEARNING_RATES.get(optimizer, PROBE_LEARNING_RATE)
    labels, trained = data.train_labels, []
    for share in (1.0, *(share for share in settings.shares if share < 1)):
        count = max(len(labels.unique()), round(share * len(labels)))
        rows = torch.tensor(stratified_subset(labels, count, settings.seed))
        classifier = train_augmented_probe(
            subject.encoder,
            replace(data, train=data.train.select(rows, labels[rows])),
            subject.accelerator,
            optimizer=optimizer,
            epochs=settings.probe_epochs,
            learning_rate=rate * settings.probe_batch_size / 256,
            batch_size=settings.probe_batch_size,
            seed=settings.seed,
            workers=settings.workers,
        )
        trained.append((share, count, classifier))
    return trained


def _penalty(subject: "Subject", train: Tensor, learnt: Tensor) -> tuple[float, dict[float, float]]:
    """The value that the settings name, or that held-out images choose, and what was tried."""
    if subject.settings.inverse_l2 is not None:
        return subject.settings.inverse_l2, {}
    choice = choose_inverse_l2(train, learnt, seed=subject.settings.seed)
    if choice.inverse_l2 in (min(choice.tried), max(choice.tried)):
        subject.tell(
            f"The penalty of the linear probe, inverse_l2={choice.inverse_l2:g}, is at the edge of those that were "
            "tried: a better one may lie beyond."
        )
    return choice.inverse_l2, choice.tried


def _few_shot(subject: "Subject", train: Tensor, learnt: Tensor, test: Tensor, wanted: Tensor) -> list[FewShotResult]:
    """Without the shots that a class has too few training images for, which is told."""
    settings = subject.settings
    counts = learnt.bincount(minlength=subject.data.num_classes)
    scarcest = int(counts.where(counts > 0, counts.max()).argmin())
    fewest = int(counts[scarcest])
    shots = [k for k in settings.shots if k <= fewest]
    if left := [k for k in settings.shots if k > fewest]:
        subject.tell(
            f"Few-shot accuracy is left out for {', '.join(map(str, left))} shots: the class "
            f"{subject.data.class_names[scarcest]} has {fewest} training images."
        )
    return few_shot_metrics(train, learnt, test, wanted, shots=shots, draws=settings.draws, seed=settings.seed)
