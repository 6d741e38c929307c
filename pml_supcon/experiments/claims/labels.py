"""Experiments on the labels: few of them, and wrong ones."""

import math
from typing import Any

from pml_supcon.experiments.claims.hyperparameters import BOTH
from pml_supcon.experiments.experiment import Comparison, Experiment, Line, Training, score_of
from pml_supcon.experiments.scales import Scale

NOISE = (0.0, 0.2, 0.4, 0.6)


def few_labels(scale: Scale) -> Experiment:
    """Reduced training data, which section 4.2 names and does not show."""
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
        name="few-labels",
        title="Few labels",
        claim="The paper names reduced training data (section 4.2), and shows nothing of it.",
        source="not in the paper",
        settings={f"{share:.0%}": (share, settings(share)) for share in scale.label_shares},
        x_title="share of the labelled training images",
        notes=[
            "Images without a label are not used at all. There are as many steps of the optimizer for every share of "
            "the scale's own data, with smaller batches where there are fewer images than in a batch; learning rates "
            "are those chosen with all labels."
        ],
    )


def label_noise(scale: Scale) -> Experiment:
    """Wrong labels, in both stages."""
    del scale
    return _over_methods(
        name="label-noise",
        title="Wrong labels",
        claim="The paper names wrong labels as a weakness of cross entropy (section 2), and shows nothing of it.",
        source="not in the paper",
        settings={f"{share:.0%} wrong": (share, {"label_noise": share} if share else {}) for share in NOISE},
        x_title="share of wrong labels in training",
        notes=[
            "Both stages see the wrong labels, those of test are right. Learning rates are those chosen without noise."
        ],
    )


def _over_methods(
    *,
    name: str,
    title: str,
    claim: str,
    source: str,
    settings: dict[str, tuple[float, dict[str, Any]]],
    x_title: str,
    notes: list[str],
) -> Experiment:
    """SupCon over cross entropy at each of several settings."""
    return Experiment(
        name=name,
        title=title,
        claim=claim,
        source=source,
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
            Comparison(
                score_of(f"supcon_out, {label}"),
                score_of(f"cross_entropy, {label}"),
                f"{label}: `supcon_out` over `cross_entropy`",
                claimed=False,
            )
            for label in settings
        ],
        x_title=x_title,
        notes=notes,
    )
