"""Experiments on hyperparameters: positives, temperature, batch size, optimizers, augmentations, and stability."""

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
    difference_of,
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
    "lars": {"lars": 78.2, "rmsprop": 78.7, "sgd": 77.6},
    "rmsprop": {"lars": 77.4, "rmsprop": 77.8, "sgd": 76.9},
    "sgd": {"lars": 77.7, "rmsprop": 76.1, "sgd": 77.7},
}
#: Top-1 accuracy of SupCon with the same augmentation in both stages (table 9), and of cross entropy (table 3).
AUGMENTED = {
    **{"supcon_out, autoaugment": 78.6, "supcon_out, randaugment": 78.4, "supcon_out, simaugment": 77.9},
    **{"supcon_out, stacked_randaugment": 75.9, "cross_entropy, autoaugment": 77.6},
}
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def positives(scale: Scale) -> Experiment:
    """Test the number of positives (table 5)."""
    named = {"all" if number is None else str(number): number for number in POSITIVES}
    names, shared = list(named), None if scale.tune_variants else BASE
    trainings = [
        Training(name, BASE if number is None else {**BASE, "positives_cap": number - 1}, shared)
        for name, number in named.items()
    ]
    return Experiment(
        name="positives",
        title="Number of positives",
        claim="More positives increase accuracy up to a point; then accuracy stays about the same.",
        source="supplement, table 5, ImageNet, ResNet-50",
        trainings=trainings,
        lines=[
            Line(f"{name} positive{'' if name == '1' else 's'}", score_of(name), paper=POSITIVES[named[name]])
            for name in names
        ],
        comparisons=[
            ahead_of(
                more,
                fewer,
                title=f"{more} {'about equal to' if place >= 3 else 'over'} {fewer}",
                paper=round(POSITIVES[named[more]] - POSITIVES[named[fewer]], 1),
                equal=place >= 3,
            )
            for place, (fewer, more) in enumerate(pairwise(names))
        ],
        notes=[
            "The other view of an image always counts as one of its positives. Positives over the cap leave the "
            "denominator too, as in the paper."
            + ("" if scale.tune_variants else " The learning rate was chosen with all positives.")
        ],
    )


def temperature(scale: Scale) -> Experiment:
    """Test the temperature (figure 4 (d))."""
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
    """Test the batch size (figure 4 (b))."""
    sizes = scale.batch_sizes
    trainings = [
        Training(f"{method} {size}", {"method": method, "batch_size": size}) for method in BOTH for size in sizes
    ]
    ends = [(f"{method} {sizes[-1]}", f"{method} {sizes[0]}") for method in BOTH]
    spread = {method: Quantity(tuple(f"{method} {size}" for size in sizes)) for method in BOTH}
    return Experiment(
        name="batch-size",
        title="Batch size",
        claim="Both methods are better with larger batches; SupCon is ahead of cross entropy at every size.",
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
            _less_spread(spread, "batch sizes", claimed=False),
        ],
        x_title="images in a batch",
        x_log=True,
        notes=["All sizes have the same epochs, as in the paper, so large batches have fewer steps."],
    )


def with_optimizer(optimizer: str, scale: Scale) -> dict[str, Any]:
    """Return the settings of an optimizer, none for the default of the scale."""
    if optimizer == scale.settings.get("optimizer", "sgd"):
        return {}
    return {"optimizer": optimizer, "optimizer_args": {"momentum": 0.9}}


def optimizers(scale: Scale) -> Experiment:
    """Test the optimizers of both stages (table 8)."""
    probe = {
        "probe_epochs": min(scale.settings["epochs"], 90),
        "probe_batch_size": min(256, scale.settings.get("batch_size", 256)),
        **{"shares": (1.0,), "inverse_l2": 1.0, "shots": (1,), "draws": 2},
    }
    cells = [(first, second) for first in OPTIMIZERS for second in OPTIMIZERS]
    best = score_of("lars", "stage2/rmsprop")
    return Experiment(
        name="optimizers",
        title="Optimizers of both stages",
        claim="LARS for the encoder with RMSprop for the classifier is best; no other choice is far behind.",
        source="supplement, table 8, ImageNet, ResNet-50",
        trainings=[Training(name, {"method": "supcon_out", **with_optimizer(name, scale)}) for name in OPTIMIZERS],
        lines=[
            Line(
                f"stage 1 {first}, stage 2 {second}", score_of(first, f"stage2/{second}"), paper=TABLE_8[first][second]
            )
            for first, second in cells
        ],
        comparisons=[
            Comparison(
                best,
                score_of(cell[0], f"stage2/{cell[1]}"),
                f"lars, rmsprop over {', '.join(cell)}",
                round(TABLE_8["lars"]["rmsprop"] - TABLE_8[cell[0]][cell[1]], 1),
            )
            for cell in cells
            if cell != ("lars", "rmsprop")
        ],
        evaluations=[{"sections": ("linear_probe",), "probe_optimizer": name, **probe} for name in OPTIMIZERS],
        notes=[
            "`sgd` is SGD with momentum. The learning rate of stage 1 is chosen for each optimizer; stage 2 has the "
            "defaults of `evaluate.py` for all encoders."
        ],
    )


def augmentations(scale: Scale) -> Experiment:
    """Test the augmentations (tables 3 and 9, figure 4 (a))."""
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
        lines=[line_of(training.name, paper=AUGMENTED.get(training.name)) for training in trainings],
        comparisons=[
            ahead_of(ours, theirs, paper=difference_of(AUGMENTED, ours, theirs), claimed=name == "autoaugment")
            for name in scale.augmentations
            for ours, theirs in [[f"{method}, {name}" for method in BOTH]]
        ],
        notes=[
            "Learning rates were chosen under the default augmentation of the scale. The paper's table 3 has 78.7 for "
            "SupCon with AutoAugment."
        ],
    )


def _augmented(method: str, name: str, scale: Scale) -> dict[str, Any]:
    return {"method": method} | ({} if name == scale.settings.get("augment") else {"augment": name})


def stability(scale: Scale) -> Experiment:
    """Test the spread of accuracy over learning rates, optimizers and augmentations (figure 4 (a))."""
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
    spreads = {what: {method: _spread_of(group, method) for method in BOTH} for what, group in groups.items()}
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
        comparisons=[_less_spread(spread, what) for what, spread in spreads.items()],
        notes=[
            "Learning rates are multiples of the chosen one. A training that diverges counts as the accuracy of chance."
        ],
    )


def _spread_of(group: Sequence[Training], method: str) -> Quantity:
    return Quantity(tuple(training.name for training in group if training.name.startswith(f"{method},")))


def _less_spread(spread: dict[str, Quantity], what: str, *, claimed: bool = True) -> Comparison:
    ours, theirs = (spread[method] for method in BOTH)
    title = f"spread over {what}: `supcon_out` under `cross_entropy`"
    return Comparison(ours, theirs, title, lower=True, claimed=claimed)
