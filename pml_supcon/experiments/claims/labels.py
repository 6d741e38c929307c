"""Experiments on the labels: fewer labels, and wrong ones."""

import math
from typing import Any

from pml_supcon.experiments.claims.hyperparameters import BOTH
from pml_supcon.experiments.experiment import Experiment, Line, Training, ahead_of, score_of
from pml_supcon.experiments.scales import Scale

NOISE = (0.0, 0.2, 0.4, 0.6)


def few_labels(scale: Scale) -> Experiment:
    """Compare SupCon and cross entropy on fewer labels; section 4.2 names this without results."""
    size, epochs, most = scale.settings["batch_size"], scale.settings["epochs"], scale.settings.get("max_train")

    def settings(share: float) -> dict[str, Any]:
        if share == 1:
            return {}
        images = round(share * scale.images)
        batch = min(size, 2 ** int(math.log2(images)))
        steps = epochs * math.ceil(scale.images / size)
        fewer = {"train_fraction": share} if most is None else {"max_train": round(share * most)}
        return {**fewer, "batch_size": batch, "epochs": round(steps / math.ceil(images / batch))}

    return _over_methods(
        "few-labels",
        "Few labels",
        "The paper names reduced training data (section 4.2) without results.",
        {f"{share:.0%}": (share, settings(share)) for share in scale.label_shares},
        "share of the labelled training images",
        "Images without a label are not used. All shares have the same number of optimizer steps, and smaller batches "
        "if there are fewer images than in a batch. Learning rates were chosen with all labels.",
    )


def label_noise(scale: Scale) -> Experiment:
    """Compare SupCon and cross entropy under wrong labels in both stages."""
    del scale
    return _over_methods(
        "label-noise",
        "Wrong labels",
        "The paper names wrong labels as a weakness of cross entropy (section 2) without results.",
        {f"{share:.0%} wrong": (share, {"label_noise": share} if share else {}) for share in NOISE},
        "share of wrong labels in training",
        "Both stages train on the wrong labels; test labels are correct. Learning rates were chosen without noise.",
    )


def _over_methods(
    name: str, title: str, claim: str, settings: dict[str, tuple[float, dict[str, Any]]], x_title: str, note: str
) -> Experiment:
    """Compare SupCon with cross entropy under several settings, named with their x value."""
    over = "`supcon_out` over `cross_entropy`"
    return Experiment(
        name=name,
        title=title,
        claim=claim,
        source="not in the paper",
        trainings=[
            Training(f"{method}, {label}", {"method": method, **own}, tuned_as={"method": method})
            for method in BOTH
            for label, (_, own) in settings.items()
        ],
        lines=[
            Line(f"`{method}`, {label}", score_of(f"{method}, {label}"), method, x)
            for method in BOTH
            for label, (x, _) in settings.items()
        ],
        comparisons=[
            ahead_of(*(f"{method}, {label}" for method in BOTH), title=f"{label}: {over}", claimed=False)
            for label in settings
        ],
        x_title=x_title,
        notes=[note],
    )
