"""Experiments on what a trained encoder is worth: corruptions, the projection head, transfer."""

from pml_supcon.experiments.claims.hyperparameters import BOTH
from pml_supcon.experiments.experiment import ACCURACY, Comparison, Experiment, Line, Training, line_of, score_of
from pml_supcon.experiments.scales import Scale

SEVERITIES = (0, 1, 2, 3, 4, 5)  # 0: as they are

#: In per cent, by severity.
TABLE_6 = {
    ("accuracy", "supcon_out"): (78.81, 65.39, 55.55, 48.64, 37.27, 26.92),
    ("accuracy", "cross_entropy"): (78.24, 65.06, 54.96, 47.64, 35.93, 25.38),
    ("ece", "supcon_out"): (2.4, 2.6, 3.4, 4.8, 7.1, 10.0),
    ("ece", "cross_entropy"): (3.9, 3.3, 3.2, 4.7, 7.2, 9.8),
}
TASKS = ("rotation", "corruption", "sobel")


def corruption(scale: Scale) -> Experiment:
    """Figure 3 (right) and table 6."""
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
        Comparison(
            score_of("supcon_out", f"corruption/{which}/{severity}"),
            score_of("cross_entropy", f"corruption/{which}/{severity}"),
            f"{name} at severity {severity}: `supcon_out` {'about equal to' if equal else over} `cross_entropy`",
            round(sign * (TABLE_6[which, "supcon_out"][severity] - TABLE_6[which, "cross_entropy"][severity]), 2),
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
        x_title="severity (0: as they are), mean over 15 corruptions",
        notes=[
            "Scored are cross entropy's own classifier, and for SupCon a linear probe of clean training images; "
            "probabilities are not scaled by a temperature. An ECE difference above 0 means that SupCon's is smaller."
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
        source="section 3.1 drops the head; the tasks are those of SimCLR's table 3 (ICML 2020)",
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
            "Tasks: the label, and how an image was changed (rotation by quarter turns, noise or not, Sobel or not)."
        ],
    )


def transfer(scale: Scale) -> Experiment:
    """Table 4, by linear probes in the place of fine-tuning."""
    names = ("supcon_out", "cross_entropy", "simclr")
    halves = scale.halves
    data = {} if halves is None else {"data": halves[0]}
    specs = scale.transfer if scale.transfer is not None else (halves or ())[1:]
    lines, comparisons = [], []
    for spec in specs:
        where = spec if halves is None else "the classes that training did not see"
        lines += [Line(f"`{name}`, {where}", score_of(name, f"transfer/{spec}"), panel=ACCURACY) for name in names]
        comparisons += [
            Comparison(
                score_of("supcon_out", f"transfer/{spec}"),
                score_of(other, f"transfer/{spec}"),
                f"{where}: `supcon_out` about equal to `{other}`",
                equal=True,
            )
            for other in names[1:]
        ]
    half = "Encoders are trained on classes 0 to 4; a linear probe is fitted to training images of classes 5 to 9. "
    note = (half if halves is not None else "") + (
        "The paper fine-tunes the encoder; here it stays frozen under a linear probe. Learning rates are those chosen "
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
