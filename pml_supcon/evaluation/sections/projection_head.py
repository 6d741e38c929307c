"""What the projection head throws away: linear probes of the encoder and of the head, for labels and changes."""

from typing import TYPE_CHECKING, Any, Literal

from pml_supcon.metrics import linear_probe_metrics
from pml_supcon.metrics.head_probe import majority_share, transformation_probe_metrics
from pml_supcon.views.changes import transformation_tasks

if TYPE_CHECKING:
    from torch import Tensor

    from pml_supcon.evaluation.context import Subject
    from pml_supcon.views.changes import Change

    Output = Literal["encoder", "head"]


def projection_head(subject: "Subject") -> dict[str, Any] | None:
    """Accuracy on test images of probes for the label and for how an image was changed.

    Probes are fitted on at most `settings.probe_images` training images, evenly spread, under each of a task's changes,
    and scored on at most as many test images.
    """
    in_chans = subject.data.in_chans
    tasks = transformation_tasks(in_chans=in_chans, seed=subject.settings.seed)
    if in_chans == 1:
        subject.tell("Images are grey: whether an image is in colour or grey is no task for a probe of the head.")
    most = subject.settings.probe_images

    def probed(change: "Change | None", output: "Output") -> "dict[str, Tensor]":
        splits: tuple[Literal["train", "test"], ...] = ("train", "test")
        return {split: subject.features(split, change=change, of=output, most=most) for split in splits}

    outputs: list[Output] = ["encoder", "head"] if subject.has_head else ["encoder"]
    changes = {change and change.key: change for variants in tasks.values() for change in variants}
    features = {output: {key: probed(change, output) for key, change in changes.items()} for output in outputs}
    if not subject.is_main:
        return None

    learnt, wanted = subject.labels("train", most=most), subject.labels("test", most=most)
    found: dict[str, dict[str, float | None]] = {"label": {"head": None, "chance": majority_share(wanted)}}
    found |= {task: {"head": None} for task in tasks}
    for output in outputs:
        plain = features[output][None]
        found["label"][output] = linear_probe_metrics(plain["train"], learnt, plain["test"], wanted)["top1"]
        for task, variants in tasks.items():
            sides = ([features[output][change and change.key][split] for change in variants] for split in plain)
            scores = transformation_probe_metrics(*sides)
            found[task] |= {output: scores["accuracy"], "chance": scores["chance"]}
    return {"tasks": found, "images": len(learnt), "test_images": len(wanted)}
