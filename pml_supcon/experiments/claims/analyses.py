"""Experiments on a trained encoder: corruptions, the projection head, transfer."""

from pml_supcon.experiments.claims.hyperparameters import BOTH
from pml_supcon.experiments.experiment import (
    ACCURACY,
    Comparison,
    Experiment,
    Line,
    Training,
    ahead_of,
    line_of,
    score_of,
)
from pml_supcon.experiments.scales import Scale

SEVERITIES = (0, 1, 2, 3, 4, 5)  # 0: clean images

#: In per cent, by severity.
TABLE_6 = {
    ("accuracy", "supcon_out"): (78.81, 65.39, 55.55, 48.64, 37.27, 26.92),
    ("accuracy", "cross_entropy"): (78.24, 65.06, 54.96, 47.64, 35.93, 25.38),
    ("ece", "supcon_out"): (2.4, 2.6, 3.4, 4.8, 7.1, 10.0),
    ("ece", "cross_entropy"): (3.9, 3.3, 3.2, 4.7, 7.2, 9.8),
}
TASKS = ("rotation", "corruption", "sobel")


def corruption(scale: Scale) -> Experiment:
    """Test accuracy and calibration under corruptions (figure 3, right, and table 6)."""
    del scale
    panels = {"accuracy": ACCURACY, "ece": "calibration error (ECE), %"}
    lines = [
        Line(
            f"`{method}`, severity {severity}" + ("" if which == "accuracy" else ", ECE"),
            score_of(method, f"corruption/{which}/{severity}"),
            method,
            float(severity),
            TABLE_6[which, method][severity],
            panel,
        )
        for which, panel in panels.items()
        for method in BOTH
        for severity in SEVERITIES
    ]
    comparisons = [
        ahead_of(
            *BOTH,
            metric=f"corruption/{which}/{severity}",
            title=f"{name} at severity {severity}: `supcon_out` {'about equal to' if equal else over} `cross_entropy`",
            paper=round(sign * (TABLE_6[which, "supcon_out"][severity] - TABLE_6[which, "cross_entropy"][severity]), 2),
            equal=equal,
            lower=which == "ece",
        )
        for which, name, over, sign in (("accuracy", "accuracy", "over", 1), ("ece", "ECE", "under", -1))
        for severity in SEVERITIES
        for equal in (which == "ece" and severity > 0,)
    ]
    return Experiment(
        name="corruption",
        title="Corruptions and calibration",
        claim="SupCon is more accurate at every severity of ImageNet-C. It is better calibrated on clean "
        "images, and about equally under corruption.",
        source="supplement, table 6, ImageNet-C, ResNet-50; mCE 67.2 and 68.6 (figure 3)",
        trainings=[Training(method, {"method": method}) for method in BOTH],
        lines=lines,
        comparisons=comparisons,
        evaluations=[{"sections": ("corruption",), "own_classifier": True}],
        x_title="severity (0: clean images), mean over 15 corruptions",
        notes=[
            "Cross entropy is scored by its own classifier, SupCon by a linear probe of clean training images, both "
            "without temperature scaling. An ECE difference above 0 means that SupCon's ECE is smaller."
        ],
    )


def head(scale: Scale) -> Experiment:
    """Test the information that the projection head discards (section 3.1)."""
    tasks = ("label", *TASKS) if scale.name == "digits" else ("label", "colour", *TASKS)
    quantities = {
        (task, side): score_of("supcon_out", f"head/{task}/{side}") for task in tasks for side in ("encoder", "head")
    }
    names = {"encoder": "h", "head": "g(h)"}
    return Experiment(
        name="head",
        title="Information discarded by the projection head",
        claim="The encoder's output h keeps information that the head's output g(h) discards: h should be used.",
        source="section 3.1 discards the head after training; tasks from table 3 of the SimCLR paper, ICML 2020",
        trainings=[Training("supcon_out", {"method": "supcon_out"})],
        lines=[
            Line(f"{task}, {names[side]}", quantity, panel="accuracy of a linear probe, %")
            for (task, side), quantity in quantities.items()
        ],
        comparisons=[
            Comparison(
                quantities[task, "encoder"], quantities[task, "head"], f"{task}: h over g(h)", claimed=task == "label"
            )
            for task in tasks
        ],
        evaluations=[{"sections": ("projection_head",), "probe_images": 2000}],
        notes=[
            "The tasks are the label and the transformation of an image: rotation by quarter turns, noise or none, "
            "Sobel filter or none."
        ],
    )


def transfer(scale: Scale) -> Experiment:
    """Test transfer (table 4) by linear probes instead of fine-tuning."""
    names = ("supcon_out", "cross_entropy", "simclr")
    halves = scale.halves
    data = {} if halves is None else {"data": halves[0]}
    specs = scale.transfer if scale.transfer is not None else (halves or ())[1:]
    lines, comparisons, same = [], [], "`supcon_out` about equal to"
    for spec in specs:
        where = spec if halves is None else "the classes that training did not see"
        lines += [Line(f"`{name}`, {where}", score_of(name, f"transfer/{spec}"), panel=ACCURACY) for name in names]
        comparisons += [
            ahead_of("supcon_out", other, metric=f"transfer/{spec}", title=f"{where}: {same} `{other}`", equal=True)
            for other in names[1:]
        ]
    half = "Encoders are trained on classes 0 to 4; a linear probe is fitted to training images of classes 5 to 9. "
    note = (half if halves is not None else "") + (
        "The paper fine-tunes the encoder; here a linear probe scores the frozen encoder. Learning rates were chosen "
        "on all classes."
    )
    return Experiment(
        name="transfer",
        title="Transfer",
        claim="SupCon is on par with cross entropy and SimCLR in transfer learning.",
        source="table 4, fine-tuned on 12 data sets, ResNet-50: means of 84.27, 84.67 and 84.81",
        trainings=[Training(name, {"method": name, **data}, tuned_as={"method": name}) for name in names],
        lines=[line_of(name) for name in names] + lines,
        comparisons=comparisons,
        evaluations=[{"sections": ("transfer",), "transfer": tuple(specs)}],
        notes=[note],
    )
