"""Experiments on how it is trained: positives, temperature, batch size, optimizers, augmentations, and stability."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pml_supcon.experiments.experiment import (
    Comparison,
    Experiment,
    Line,
    Quantity,
    Training,
    ahead_of,
    line_of,
    score_of,
)
from pml_supcon.experiments.scales import Scale

POSITIVES = {1: 69.3, 3: 76.6, 5: 78.0, 7: 78.4, 9: 78.3, None: 78.5}
TEMPERATURES = (0.05, 0.07, 0.1, 0.2, 0.5, 1.0)
BASE = {"method": "supcon_out"}
OPTIMIZERS = ("lars", "rmsprop", "sgd")
BOTH = ("supcon_out", "cross_entropy")

#: Top-1 accuracy in per cent, by the optimizers of stage 1 and stage 2.
TABLE_8 = {
    ("lars", "lars"): 78.2,
    ("lars", "rmsprop"): 78.7,
    ("lars", "sgd"): 77.6,
    ("rmsprop", "lars"): 77.4,
    ("rmsprop", "rmsprop"): 77.8,
    ("rmsprop", "sgd"): 76.9,
    ("sgd", "lars"): 77.7,
    ("sgd", "rmsprop"): 76.1,
    ("sgd", "sgd"): 77.7,
}
#: The same augmentation in both stages.
TABLE_9 = {"autoaugment": 78.6, "randaugment": 78.4, "simaugment": 77.9, "stacked_randaugment": 75.9}
AUTOAUGMENT = 77.6  # cross entropy, table 3
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def positives(scale: Scale) -> Experiment:
    """Table 5."""
    named = {"all" if number is None else str(number): number for number in POSITIVES}
    names, shared = list(named), None if scale.tune_variants else BASE
    trainings = [
        Training(name, BASE if number is None else {**BASE, "positives_cap": number - 1}, shared)
        for name, number in named.items()
    ]
    return Experiment(
        name="positives",
        title="Number of positives",
        claim="More positives help, then it levels off.",
        source="supplement, table 5, ImageNet, ResNet-50",
        trainings=trainings,
        lines=[
            Line(f"{name} positive{'' if name == '1' else 's'}", score_of(name), paper=POSITIVES[named[name]])
            for name in names
        ],
        comparisons=[
            Comparison(
                score_of(more),
                score_of(fewer),
                f"{more} {'about equal to' if place >= 3 else 'over'} {fewer}",
                round(POSITIVES[named[more]] - POSITIVES[named[fewer]], 1),
                equal=place >= 3,
            )
            for place, (fewer, more) in enumerate(pairwise(names))
        ],
        notes=[
            "An image's own other view is one of the positives, and always there; what is over the cap leaves the "
            "denominator too, as in the paper."
            + ("" if scale.tune_variants else " The learning rate is the one chosen for all positives.")
        ],
    )


def temperature(scale: Scale) -> Experiment:
    """Figure 4 (d)."""
    del scale
    return Experiment(
        name="temperature",
        title="Temperature",
        claim="Small temperatures are better than large ones, very small ones are hard to train; 0.1 is best.",
        source="figure 4 (d) and section 4.5, a figure without numbers",
        trainings=[Training(f"{tau:g}", {"method": "supcon_out", "temperature": tau}) for tau in TEMPERATURES],
        lines=[Line(f"temperature {tau:g}", score_of(f"{tau:g}"), "supcon_out", tau) for tau in TEMPERATURES],
        comparisons=[ahead_of("0.1", f"{tau:g}") for tau in TEMPERATURES if tau != 0.1],
        x_title="temperature",
        x_log=True,
    )


def batch_size(scale: Scale) -> Experiment:
    """Figure 4 (b)."""
    sizes = scale.batch_sizes
    trainings = [
        Training(f"{method} {size}", {"method": method, "batch_size": size}) for method in BOTH for size in sizes
    ]
    ends = [(f"{method} {sizes[-1]}", f"{method} {sizes[0]}") for method in BOTH]
    spread = {method: Quantity(tuple(f"{method} {size}" for size in sizes)) for method in BOTH}
    return Experiment(
        name="batch-size",
        title="Batch size",
        claim="Larger batches help both; SupCon is ahead of cross entropy at every size.",
        source="figure 4 (b) and section 4.3, a figure without numbers",
        trainings=trainings,
        lines=[
            Line(f"`{method}`, {size}", score_of(f"{method} {size}"), method, float(size))
            for method in BOTH
            for size in sizes
        ],
        comparisons=[
            *(ahead_of(large, small) for large, small in ends),
            *(ahead_of(f"supcon_out {size}", f"cross_entropy {size}") for size in sizes),
            _steadier(spread, "batch sizes", claimed=False),
        ],
        x_title="images in a batch",
        x_log=True,
        notes=["Epochs are the same for all sizes, as in the paper, so that large batches have fewer steps."],
    )


def with_optimizer(optimizer: str, scale: Scale) -> dict[str, Any]:
    """The settings of an optimizer; none where it is the scale's own."""
    if optimizer == scale.settings.get("optimizer", "sgd"):
        return {}
    return {"optimizer": optimizer, "optimizer_args": {"momentum": 0.9}}


def optimizers(scale: Scale) -> Experiment:
    """Table 8."""
    size = min(256, scale.settings.get("batch_size", 256))
    cells = [(first, second) for first in OPTIMIZERS for second in OPTIMIZERS]
    best = score_of("lars", "stage2/rmsprop")
    return Experiment(
        name="optimizers",
        title="Optimizers of both stages",
        claim="LARS for the encoder and RMSprop for the classifier do best; no choice is far behind.",
        source="supplement, table 8, ImageNet, ResNet-50",
        trainings=[Training(name, {"method": "supcon_out", **with_optimizer(name, scale)}) for name in OPTIMIZERS],
        lines=[
            Line(
                f"stage 1 {first}, stage 2 {second}", score_of(first, f"stage2/{second}"), paper=TABLE_8[first, second]
            )
            for first, second in cells
        ],
        comparisons=[
            Comparison(
                best,
                score_of(first, f"stage2/{second}"),
                f"lars, rmsprop over {first}, {second}",
                round(TABLE_8["lars", "rmsprop"] - TABLE_8[first, second], 1),
            )
            for first, second in cells
            if (first, second) != ("lars", "rmsprop")
        ],
        evaluations=[
            {
                "sections": ("linear_probe",),
                "probe_optimizer": name,
                "probe_epochs": min(scale.settings["epochs"], 90),
                "probe_batch_size": size,
                "shares": (1.0,),
                "inverse_l2": 1.0,
                "shots": (1,),
                "draws": 2,
            }
            for name in OPTIMIZERS
        ],
        notes=[
            "`sgd` is SGD with momentum. The learning rate of stage 1 is chosen for each optimizer; those of stage 2 "
            "are `evaluate.py`'s own, the same for all encoders."
        ],
    )


def augmentations(scale: Scale) -> Experiment:
    """Tables 3 and 9, figure 4 (a)."""
    trainings = [
        Training(f"{method}, {name}", _augmented(method, name, scale), tuned_as={"method": method})
        for method in BOTH
        for name in scale.augmentations
    ]
    return Experiment(
        name="augmentations",
        title="Augmentations",
        claim="SupCon is ahead of cross entropy under the same augmentation.",
        source="table 3 and the supplement's table 9, ImageNet, ResNet-50",
        trainings=trainings,
        lines=[line_of(f"supcon_out, {name}", paper=TABLE_9.get(name)) for name in scale.augmentations]
        + [
            line_of(f"cross_entropy, {name}", paper=AUTOAUGMENT if name == "autoaugment" else None)
            for name in scale.augmentations
        ],
        comparisons=[
            ahead_of(
                f"supcon_out, {name}",
                f"cross_entropy, {name}",
                paper=round(TABLE_9[name] - AUTOAUGMENT, 1) if name == "autoaugment" else None,
                claimed=name == "autoaugment",
            )
            for name in scale.augmentations
        ],
        notes=[
            "Learning rates are those chosen under the scale's own augmentation. The paper's "
            "table 3 has 78.7 for SupCon with AutoAugment."
        ],
    )


def _augmented(method: str, name: str, scale: Scale) -> dict[str, Any]:
    return {"method": method} | ({} if name == scale.settings.get("augment") else {"augment": name})


def stability(scale: Scale) -> Experiment:
    """Figure 4 (a): learning rate, optimizer, augmentation."""
    groups: dict[str, list[Training]] = {"learning rates": [], "optimizers": [], "augmentations": []}
    for method in BOTH:
        own = {"method": method}
        groups["learning rates"] += [
            Training(f"{method}, learning rate x {factor:g}", own, factor=factor) for factor in FACTORS
        ]
        groups["optimizers"] += [
            Training(f"{method}, {name}", {**own, **with_optimizer(name, scale)}) for name in OPTIMIZERS
        ]
        groups["augmentations"] += [
            Training(f"{method}, {name}", _augmented(method, name, scale), tuned_as=own) for name in scale.augmentations
        ]
    spreads = {what: {method: _over(group, method) for method in BOTH} for what, group in groups.items()}
    panel = "standard deviation of top-1 accuracy, points"
    return Experiment(
        name="stability",
        title="Stability",
        claim="SupCon's accuracy varies less than cross entropy's over learning rates, optimizers and augmentations.",
        source="figure 4 (a) and section 4.3, ImageNet, a figure without numbers",
        trainings=[training for group in groups.values() for training in group],
        lines=[
            *(line_of(training.name) for group in groups.values() for training in group),
            *(
                Line(f"over {what}, `{method}`", spread[method], panel=panel)
                for what, spread in spreads.items()
                for method in BOTH
            ),
        ],
        comparisons=[_steadier(spread, what) for what, spread in spreads.items()],
        notes=[
            "Learning rates are multiples of the chosen one. A training that diverges counts as the accuracy of chance."
        ],
    )


def _over(group: Sequence[Training], method: str) -> Quantity:
    return Quantity(tuple(training.name for training in group if training.name.startswith(f"{method},")))


def _steadier(spread: dict[str, Quantity], what: str, *, claimed: bool = True) -> Comparison:
    ours, theirs = (spread[method] for method in BOTH)
    title = f"spread over {what}: `supcon_out` under `cross_entropy`"
    return Comparison(ours, theirs, title, lower=True, claimed=claimed)
