"""Experiments on training objectives: losses, methods, miners, one stage or two."""

from typing import Any

from pml_supcon.experiments.analysis import HARDEST
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

MINED = {
    "triplet, batch_hard": {"method": "triplet", "miner": "batch_hard"},
    "triplet, semi_hard": {"method": "triplet", "miner": "semi_hard"},
    "triplet, distance_weighted": {"method": "triplet", "miner": "distance_weighted"},
    "max_margin, ohem": {"method": "max_margin", "miner": "ohem"},
}
NOT_CUBIC = ("triplet, batch_hard", "max_margin, ohem")  # other miners list all triplets of a batch

#: Top-1 accuracy in per cent; N-pairs from section 4.1.
TABLE_2 = {
    "CIFAR-10": {"supcon_out": 96.0, "cross_entropy": 95.0, "simclr": 93.6, "max_margin": 92.4},
    "ImageNet": {"supcon_out": 78.7, "cross_entropy": 78.2, "simclr": 70.2, "max_margin": 78.0, "npairs": 57.4},
}


def losses(scale: Scale) -> Experiment:
    """Test the two supervised contrastive losses (equations 2 and 3)."""
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


def settings_of_method(method: str, scale: Scale) -> dict[str, Any]:
    """Return the settings of a method."""
    sampled = method == "triplet" and scale.triplets_per_anchor is not None
    return {"method": method} | ({"triplets_per_anchor": scale.triplets_per_anchor} if sampled else {})


def methods(scale: Scale) -> Experiment:
    """Test the methods (table 2), and other losses that the paper names."""
    imagenet = scale.name == "imagenet"
    paper = TABLE_2["ImageNet" if imagenet else "CIFAR-10"]
    names = ("supcon_out", "cross_entropy", "simclr", "max_margin", "triplet", "npairs")
    drawn = "" if scale.triplets_per_anchor is None else f"; {scale.triplets_per_anchor} triplets per anchor are drawn"
    return Experiment(
        name="methods",
        title="Methods",
        claim="SupCon is ahead of cross entropy, SimCLR and max-margin, and far ahead of the N-pairs loss.",
        source="table 2, ImageNet; section 4.1" if imagenet else "table 2, CIFAR-10, ResNet-50",
        trainings=[Training(name, settings_of_method(name, scale)) for name in names],
        lines=[line_of(name, paper=paper.get(name)) for name in names],
        comparisons=[
            *(
                ahead_of("supcon_out", name, paper=difference_of(paper, "supcon_out", name), claimed=name != "triplet")
                for name in names[1:]
            ),
            ahead_of("cross_entropy", "simclr", paper=difference_of(paper, "cross_entropy", "simclr")),
        ],
        notes=[
            "For SupCon, cross entropy, SimCLR and max-margin the paper has 76.5, 75.3, 70.7, 70.5 on CIFAR-100 and "
            "78.7, 78.2, 70.2, 78.0 on ImageNet, with 57.4 for N-pairs; max-margin is from another paper. Triplet "
            f"and max-margin have PML's default margins (0.05, 1){drawn}; N-pairs has one pair per class. All methods "
            "train a projection head, then a linear classifier, except cross entropy, whose own classifier is scored."
        ],
    )


def joint(scale: Scale) -> Experiment:
    """Test joint training of encoder and classifier (section 4.5)."""
    del scale
    trainings: dict[str, dict[str, Any]] = {
        "supcon_out": {"method": "supcon_out"},
        "joint, classifier alone": {"method": "joint", "classifier_alone": True},
        "joint": {"method": "joint"},
        "cross_entropy": {"method": "cross_entropy"},
    }
    return Experiment(
        name="joint",
        title="One stage or two",
        claim="A classifier trained with the encoder, without a gradient into it, about matches one trained later.",
        source="section 4.5, text, without a table",
        trainings=[Training(name, settings) for name, settings in trainings.items()],
        lines=[line_of(name) for name in trainings],
        comparisons=[
            ahead_of("joint, classifier alone", "supcon_out", equal=True),
            ahead_of("joint", "supcon_out", equal=True, claimed=False),
        ],
        notes=[
            "The paper describes `joint, classifier alone`; with `joint` the classifier's cross entropy trains the "
            "encoder as well."
        ],
    )


def mining(scale: Scale) -> Experiment:
    """Test implicit hard mining and its cost (section 3.2.3, and sections 7 and 8 of the supplement)."""
    mined = MINED if scale.triplets_per_anchor is None else {name: MINED[name] for name in NOT_CUBIC}
    settings = {name: settings_of_method(name, scale) for name in ("supcon_out", "triplet", "max_margin")} | mined
    cost = {name: Quantity((name,), "loss/milliseconds", percent=False) for name in settings}
    lines = [line_of(name) for name in settings]
    lines += [Line(f"`{name}`", cost[name], panel="loss and miner, milliseconds a step") for name in settings]
    comparisons = [ahead_of("supcon_out", name, claimed=name.startswith("triplet")) for name in mined]
    for name in mined:
        title, claimed = f"milliseconds: `supcon_out` under `{name}`", name.startswith("triplet")
        comparisons.append(Comparison(cost["supcon_out"], cost[name], title, lower=True, claimed=claimed))
    lines += [
        Line(
            f"hardest {percent}% of {kind}, `{loss}`",
            score_of("supcon_out", f"hard_mining/{loss}/{kind}/hardest/{percent}"),
            loss,
            float(percent),
            panel=f"their share of the gradient, %: {kind}",
        )
        for kind in ("positives", "negatives")
        for loss in ("supcon_out", "supcon_in", "triplet")
        for percent in HARDEST
    ]
    for kind in ("positives", "negatives"):
        weighted, even = (
            Quantity(("supcon_out",), f"hard_mining/supcon_out/{kind}/{which}_hardness", percent=False)
            for which in ("gradient", "mean")
        )
        lines += [
            Line(f"hardness of {kind}, weighted by their share of the gradient", weighted, panel=f"hardness of {kind}"),
            Line(f"hardness of {kind}, unweighted", even, panel=f"hardness of {kind}"),
        ]
        comparisons.append(Comparison(weighted, even, f"gradient-weighted hardness over mean hardness, {kind}"))
    return Experiment(
        name="mining",
        title="Hard mining",
        claim=(
            "The gradient of L_out concentrates on hard positives and hard negatives without a miner; triplets need "
            "mined pairs, which cost more."
        ),
        source="supplement, sections 7 and 8, text and formulas",
        trainings=[Training(name, own) for name, own in settings.items()],
        lines=lines,
        comparisons=comparisons,
        evaluations=[{"sections": ("hard_mining",), "mining_batch_size": scale.settings.get("batch_size", 256)}],
        evaluated=("supcon_out",),
        timed=True,
        x_title="the hardest pairs, % of all",
        x_log=True,
        notes=[
            "Hardness is 1 - cosine for positives and the cosine for negatives, of test images under the trained head. "
            "The gradients of all three losses are computed for the encoder that L_out trained. Milliseconds are of a "
            "loss with its miner, forward and backward, measured round-robin on one batch; their interval is over "
            "repeated timings on one machine."
        ],
    )
