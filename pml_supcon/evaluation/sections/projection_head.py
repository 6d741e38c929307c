"""What the projection head throws away: linear probes of the encoder and of the head, for labels and changes."""

from typing import Any, Literal

from torch import Tensor

from pml_supcon.evaluation.context import EvaluationContext
from pml_supcon.metrics import linear_probe_metrics
from pml_supcon.metrics.head_probe import majority_share, transformation_probe_metrics
from pml_supcon.views.changes import Change, transformation_tasks

Output = Literal["encoder", "head"]


def projection_head(context: EvaluationContext) -> dict[str, Any] | None:
    """Accuracy on test images of probes for the label and for how an image was changed.

    Probes are fitted on at most `settings.probe_images` training images, evenly spread, under each of a task's changes,
    and scored on at most as many test images.
    """
    in_chans = context.data.in_chans
    tasks = transformation_tasks(in_chans=in_chans, seed=context.settings.seed)
    if in_chans == 1:
        context.note("Images are grey: whether an image is in colour or grey is no task for a probe of the head.")
    most = context.settings.probe_images

    def probed(change: Change | None, output: Output) -> dict[str, Tensor]:
        splits: tuple[Literal["train", "test"], ...] = ("train", "test")
        return {split: context.features(split, change=change, of=output, most=most) for split in splits}

    outputs: list[Output] = ["encoder", "head"] if context.has_head else ["encoder"]
    changes = {change and change.key: change for variants in tasks.values() for change in variants}
    features = {output: {key: probed(change, output) for key, change in changes.items()} for output in outputs}
    if not context.is_main:
        return None

    learnt, wanted = context.labels("train", most=most), context.labels("test", most=most)
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
