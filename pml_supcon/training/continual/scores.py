"""The accuracies on all tasks so far, by the classifier of each method."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pml_supcon.data.streams import TaskStream
from pml_supcon.metrics import class_il_accuracies, probe_logits
from pml_supcon.metrics.logistic import ProbeOptions, fit
from pml_supcon.training.methods import EncoderWithTop, part_of
from pml_supcon.training.processes import on_main
from pml_supcon.training.run import RunContext
from pml_supcon.training.scoring import Embedded, classifier_logits, embed_split

Row = list[float | None]  # an entry for each task
Classifier = Callable[[Tensor], Tensor]  # features (N, width) to scores (N, C); columns of unseen classes are not read


def score_tasks(
    context: RunContext, stream: TaskStream, model: EncoderWithTop, method: str, tasks: Sequence[int], places: Tensor
) -> tuple[Row, Row]:
    """Return the class-IL and the task-IL accuracy on each of the ``tasks`` so far; None for later tasks.

    A collective: every process must call it.

    Args:
        context: The context of the training.
        stream: The tasks.
        model: The trained model.
        method: The method. ``co2l`` is scored by a linear classifier on the frozen encoder, ``supcon_replay`` by the
            nearest class mean, the others by their own classifier.
        tasks: The tasks so far, from 0.
        places: The training images of that linear classifier, or of those class means.
    """
    encoder, reference = model.encoder, None
    if method in ("co2l", "supcon_replay"):
        labels = stream.labels_at(places)
        reference = embed_split(stream.training_images(places, labels), labels, context, encoder)
    tests = [embed_split(images, images.labels, context, encoder) for images in map(stream.test_images, tasks)]

    def score() -> tuple[Row, Row]:
        if reference is None:
            classify = own_classifier(model)
        else:
            classify = (linear_classifier if method == "co2l" else class_means)(reference, stream)
        return accuracies([test for test in tests if test is not None], classify, stream, tasks)

    return on_main(score)


def accuracies(
    tests: Sequence[Embedded], classify: Classifier, stream: TaskStream, tasks: Sequence[int]
) -> tuple[Row, Row]:
    """Return the accuracies on ``tests``, of ``tasks``, as ``score_tasks`` does."""
    seen = list(dict.fromkeys(label for task in tasks for label in stream.tasks[task]))
    rows: tuple[Row, Row] = ([None] * len(stream.tasks), [None] * len(stream.tasks))
    for task, test in zip(tasks, tests, strict=True):
        scores = classify(test.features)
        for row, competing in zip(rows, (seen, list(stream.tasks[task])), strict=True):
            row[task] = float(class_il_accuracies(scores, test.labels, [competing])[0])
    return rows


def own_classifier(model: EncoderWithTop) -> Classifier:
    """Return the logits of the classifier that was trained with the encoder."""
    classifier = part_of(model.top, nn.Linear)
    assert classifier is not None  # of the methods with cross entropy
    return partial(classifier_logits, classifier)


def linear_classifier(train: Embedded, stream: TaskStream) -> Classifier:
    """Fit an L2-regularised logistic regression in which each stream label has the same weight; the paper runs SGD."""
    weights = balanced_weights(train.labels).numpy()
    probe = fit(train.features.numpy(), stream.classes(train.labels).numpy(), ProbeOptions(), weights)
    columns = torch.from_numpy(probe.classes_)

    def classify(features: Tensor) -> Tensor:
        scores = torch.zeros(len(features), stream.data.num_classes, dtype=torch.float64)
        scores[:, columns] = torch.from_numpy(probe_logits(probe, features)).double()
        return scores

    return classify


def balanced_weights(labels: Tensor) -> Tensor:
    """Return weights of rows, float64 ``(N,)``: 1 for rows of the most frequent label, and the same sum for each label.

    Examples:
        >>> balanced_weights(torch.tensor([5, 7, 5, 5])).tolist()
        [1.0, 3.0, 1.0, 1.0]
    """
    counts = labels.bincount()
    return counts.max().double() / counts[labels]


def class_means(train: Embedded, stream: TaskStream) -> Classifier:
    """Return the cosine similarity to the mean of each class (nearest class mean).

    A class in several domains has a mean in each of them; the nearest one counts.
    """
    labels = train.labels.unique()
    # (L, width): the normalised mean of the normalised rows of each stream label.
    means = F.normalize(torch.stack([train.rows[train.labels == label].mean(0) for label in labels]))

    def classify(features: Tensor) -> Tensor:
        similarities = F.normalize(features) @ means.T  # (N, L)
        columns = stream.classes(labels).expand_as(similarities)
        lowest = torch.full((len(features), stream.data.num_classes), -1.0)
        return lowest.scatter_reduce(1, columns, similarities, "amax")

    return classify
