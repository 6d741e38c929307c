"""Experiments on what a trained encoder is worth: corruptions, the projection head, transfer."""

from pml_supcon.recipes.reproducing.experiment import (
    Comparison,
    Experiment,
    Line,
    Training,
    ahead_of,
    line_of,
    score_of,
)
from pml_supcon.recipes.reproducing.experiments.hyperparameters import BOTH
from pml_supcon.recipes.reproducing.scales import Scale

SEVERITIES = (0, 1, 2, 3, 4, 5)  # 0: as they are
TASKS = ("rotation", "corruption", "sobel")


def corruption(scale: Scale) -> Experiment:
    """Figure 3 and table 4."""
    del scale
    error = "calibration error (ECE), %"
    measures = {"accuracy": "top-1 accuracy, %", "ece": error}
    lines = [
        Line(
            f"`{method}`, severity {severity}" + ("" if which == "accuracy" else ", ECE"),
            score_of(method, f"corruption/{which}/{severity}"),
            method,
            float(severity),
            panel=panel,
        )
        for which, panel in measures.items()
        for method in BOTH
        for severity in SEVERITIES
    ]
    comparisons = [
        Comparison(
            score_of("supcon_out", f"corruption/{which}/{severity}"),
            score_of("cross_entropy", f"corruption/{which}/{severity}"),
            f"{name} at severity {severity}: `supcon_out` {relation} `cross_entropy`",
            lower=which == "ece",
        )
        for which, name, relation in (("accuracy", "accuracy", "over"), ("ece", "ECE", "under"))
        for severity in SEVERITIES
    ]
    return Experiment(
        name="corruption",
        title="Corruptions and calibration",
        claim="SupCon is more accurate than cross entropy at every severity of ImageNet-C, and calibrated no worse.",
        source="figure 3, ImageNet-C, a figure without numbers",
        trainings=[Training(method, {"method": method}) for method in BOTH],
        lines=lines,
        comparisons=comparisons,
        evaluations=[{"sections": ("corruption",)}],
        x_title="severity (0: as they are), mean over 15 corruptions",
        notes=[
            "A linear probe on clean training images is scored, for both alike; probabilities are not scaled by a "
            "temperature."
        ],
    )


def head(scale: Scale) -> Experiment:
    """Section 3.1: why the head is dropped."""
    tasks = ("label", *TASKS) if scale.name == "digits" else ("label", "colour", *TASKS)
    quantities = {
        (task, side): score_of("supcon_out", f"head/{task}/{side}") for task in tasks for side in ("encoder", "head")
    }
    names = {"encoder": "h", "head": "g(h)"}
    return Experiment(
        name="head",
        title="What the projection head loses",
        claim="The encoder's output h keeps what the head's output g(h) throws away: h is what should be used.",
        source="section 3.1, after SimCLR's table 3 (ICML 2020)",
        trainings=[Training("supcon_out", {"method": "supcon_out"})],
        lines=[
            Line(f"{task}, {names[side]}", quantity, panel="accuracy of a linear probe, %")
            for (task, side), quantity in quantities.items()
        ],
        comparisons=[
            Comparison(quantities[task, "encoder"], quantities[task, "head"], f"{task}: h over g(h)") for task in tasks
        ],
        evaluations=[{"sections": ("projection_head",), "probe_images": 2000}],
        notes=[
            "Tasks: the label, and how an image was changed (rotation by quarter turns, noise or not, Sobel or not)."
        ],
    )


def transfer(scale: Scale) -> Experiment:
    """Table 4: transfer of a frozen encoder."""
    names = ("supcon_out", "cross_entropy", "simclr")
    halves = scale.halves
    data = {} if halves is None else {"data": halves[0]}
    specs = scale.transfer if scale.transfer is not None else (halves or ())[1:]
    lines, comparisons = [], []
    for spec in specs:
        where = spec if halves is None else "the classes that training did not see"
        lines += [
            Line(f"`{name}`, {where}", score_of(name, f"transfer/{spec}"), panel="top-1 accuracy, %") for name in names
        ]
        comparisons.append(
            Comparison(
                score_of("supcon_out", f"transfer/{spec}"),
                score_of("cross_entropy", f"transfer/{spec}"),
                f"{where}: `supcon_out` about equal to `cross_entropy`",
                equal=True,
            )
        )
    note = "Encoders are trained on classes 0 to 4; a linear probe is fitted to training images of classes 5 to 9."
    return Experiment(
        name="transfer",
        title="Transfer",
        claim="Encoders trained with SupCon transfer about as well as those trained with cross entropy.",
        source="table 4, 12 data sets, ImageNet encoders",
        trainings=[Training(name, {"method": name, **data}, tuned_as={"method": name}) for name in names],
        lines=[line_of(name) for name in names] + lines,
        comparisons=[*comparisons, ahead_of(*BOTH)],
        evaluations=[{"sections": ("transfer",), "transfer": tuple(specs)}],
        notes=[note] if halves is not None else [],
    )
