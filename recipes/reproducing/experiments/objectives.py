"""Experiments on what is trained with: losses, methods, miners, one stage or two."""

from pml_supcon.recipes.reproducing.experiment import (
    Comparison,
    Experiment,
    Line,
    Quantity,
    Training,
    ahead_of,
    line_of,
)
from pml_supcon.recipes.reproducing.scales import Scale

MINED = {
    "triplet, batch_hard": {"method": "triplet", "miner": "batch_hard"},
    "triplet, semi_hard": {"method": "triplet", "miner": "semi_hard"},
    "triplet, distance_weighted": {"method": "triplet", "miner": "distance_weighted"},
    "max_margin, ohem": {"method": "max_margin", "miner": "ohem"},
}
GRADIENT = "share of the gradient"


def losses(scale: Scale) -> Experiment:
    """Equations 2 and 3."""
    del scale
    return Experiment(
        name="losses",
        title="L_out or L_in",
        claim="The mean over positives belongs outside the logarithm: L_out is far ahead of L_in.",
        source="section 3.2.2, ImageNet, ResNet-50",
        trainings=[Training(name, {"method": name}) for name in ("supcon_out", "supcon_in")],
        lines=[line_of("supcon_out", paper=78.7), line_of("supcon_in", paper=67.4)],
        comparisons=[ahead_of("supcon_out", "supcon_in", paper=11.3)],
    )


def methods(scale: Scale) -> Experiment:
    """Table 2, and the losses that section 2 names."""
    paper = {"supcon_out": 96.0, "cross_entropy": 95.0, "simclr": 93.6, "max_margin": 92.4}
    names = ("supcon_out", "cross_entropy", "simclr", "max_margin", "triplet", "npairs")
    if scale.name == "imagenet":
        paper = {"supcon_out": 78.7}
    return Experiment(
        name="methods",
        title="Methods",
        claim="SupCon is ahead of cross entropy, SimCLR and max-margin; triplet and N-pairs losses are beside them.",
        source="table 2, CIFAR-10, ResNet-50 (on CIFAR-100: 76.5, 75.3, 70.7, 70.5)",
        trainings=[Training(name, {"method": name}) for name in names],
        lines=[line_of(name, paper=paper.get(name)) for name in names],
        comparisons=[
            ahead_of("supcon_out", name, paper=round(paper["supcon_out"] - paper[name], 1) if name in paper else None)
            for name in names[1:]
        ]
        + [ahead_of("cross_entropy", "simclr", paper=1.4 if "simclr" in paper else None)],
        notes=[
            "The margins of triplet and max-margin are PML's own (0.05, 1); triplets are all of a batch, N-pairs has "
            "one pair of each class. All rows train a projection head and then a linear classifier, but for cross "
            "entropy, whose own classifier is scored."
        ],
    )


def joint(scale: Scale) -> Experiment:
    """One stage or two."""
    del scale
    names = ("supcon_out", "joint", "cross_entropy")
    return Experiment(
        name="joint",
        title="One stage or two",
        claim="Training the classifier together with the contrastive loss is about as good as training it afterwards.",
        source="section 4.4, in words",
        trainings=[Training(name, {"method": name}) for name in names],
        lines=[line_of(name) for name in names],
        comparisons=[ahead_of("joint", "supcon_out", equal=True)],
    )


def mining(scale: Scale) -> Experiment:
    """Section 3.2.3 and the supplement's derivation."""
    plain = ("supcon_out", "triplet", "max_margin")
    trainings = [Training(name, {"method": name}) for name in plain]
    trainings += [Training(name, settings) for name, settings in MINED.items()]
    speed = "train/images_per_second"
    lines = [line_of(training.name) for training in trainings]
    lines += [
        Line(f"`{training.name}`", Quantity((training.name,), speed, percent=False), panel="images a second, stage 1")
        for training in trainings
    ]
    comparisons = [ahead_of("supcon_out", name) for name in MINED]
    comparisons += [
        Comparison(
            Quantity(("supcon_out",), speed, percent=False),
            Quantity((name,), speed, percent=False),
            f"images a second: `supcon_out` over `{name}`",
        )
        for name in MINED
    ]
    for kind in ("positives", "negatives"):
        weighted, even = (
            Quantity(("supcon_out",), f"hard_mining/supcon_out/{kind}/{which}_hardness", percent=False)
            for which in ("gradient", "mean")
        )
        lines += [
            Line(f"hardness of {kind}, weighted by their {GRADIENT}", weighted, panel=f"hardness of {kind}"),
            Line(f"hardness of {kind}, all alike", even, panel=f"hardness of {kind}"),
        ]
        comparisons.append(Comparison(weighted, even, f"the gradient goes to hard {kind}"))
    return Experiment(
        name="mining",
        title="Hard mining",
        claim=(
            "The gradient of L_out goes to hard positives and hard negatives by itself; losses that need mined pairs "
            "cost more and end lower."
        ),
        source="section 3.2.3 and the supplement, in words and formulas",
        trainings=trainings,
        lines=lines,
        comparisons=comparisons,
        evaluations=[{"sections": ("hard_mining",), "mining_batch_size": scale.settings.get("batch_size", 256)}],
        evaluated=("supcon_out",),
        notes=[
            "Hardness is 1 - cosine for positives and the cosine for negatives, of test images under the trained head."
        ],
    )
