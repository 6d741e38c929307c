"""The section "projection_head": the information that the projection head discards, by linear probes."""

from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor

from pml_supcon.evaluation.context import EvaluationContext, Output
from pml_supcon.metrics import linear_probe_metrics
from pml_supcon.metrics.head_probe import majority_share, transformation_probe_metrics
from pml_supcon.views.changes import Change, transformation_tasks


class TaskScores(TypedDict):
    """The accuracies of a probe of the encoder and of the head (None: there is no head), and of the largest class."""

    encoder: float
    head: float | None
    chance: float


@dataclass(frozen=True, kw_only=True)
class ProjectionHeadSection:
    """The results of the section "projection_head".

    Attributes:
        tasks: The scores by task: ``label``, and the transformations of ``transformation_tasks``.
        images: The number of training images.
        test_images: The number of test images.
    """

    tasks: dict[str, TaskScores]
    images: int
    test_images: int


def projection_head(context: EvaluationContext) -> ProjectionHeadSection | None:
    """Compute the test accuracy of probes for the label of an image and for the transformation applied to it.

    Probes are fitted on at most ``settings.probe_images`` training images, evenly spread, under each of a task's
    transformations, and scored on at most as many test images.
    """
    in_chans, most = context.data.in_chans, context.settings.probe_images
    tasks = transformation_tasks(in_chans=in_chans, seed=context.settings.seed)
    if in_chans == 1:
        context.note("The images are grey: the head is not probed for colour.")

    def features_of(change: Change | None, output: Output) -> dict[str, Tensor]:
        options: dict[str, Any] = {"change": change, "of": output, "most": most}
        return {"train": context.features("train", **options), "test": context.features("test", **options)}

    # features[output][key of the change][split]: (n, width); tasks share the features of unchanged images
    outputs: list[Output] = ["encoder", "head"] if context.has_head else ["encoder"]
    changes = {change and change.key: change for variants in tasks.values() for change in variants}
    features = {output: {key: features_of(change, output) for key, change in changes.items()} for output in outputs}
    if not context.is_main:
        return None

    train_labels, test_labels = context.labels("train", most=most), context.labels("test", most=most)

    def score(task: str, output: Output) -> tuple[float, float]:
        """Return the accuracy of a probe of an output, and the share of the largest class."""
        if task == "label":
            rows = features[output][None]
            top1 = linear_probe_metrics(rows["train"], train_labels, rows["test"], test_labels)["top1"]
            return top1, majority_share(test_labels)
        rows_of = [features[output][change and change.key] for change in tasks[task]]
        metrics = transformation_probe_metrics(*([rows[split] for rows in rows_of] for split in ("train", "test")))
        return metrics["accuracy"], metrics["chance"]

    scores: dict[str, TaskScores] = {}
    for task in ("label", *tasks):
        encoder, chance = score(task, "encoder")
        head = score(task, "head")[0] if context.has_head else None
        scores[task] = {"encoder": encoder, "head": head, "chance": chance}
    return ProjectionHeadSection(tasks=scores, images=len(train_labels), test_images=len(test_labels))
