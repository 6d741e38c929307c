"""The scores and pictures of the frozen encoder at the end of a run."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from pml_supcon._console import note
from pml_supcon.data.images import LazyImages, MemoryImages, evenly
from pml_supcon.data.label_kinds import LabelsAre, classes_of, colours_of, has_new_classes
from pml_supcon.metrics import (
    choose_inverse_l2,
    fit_linear_probe,
    label_sets_probe_metrics,
    level_probe_metrics,
    number_probe_metrics,
    probe_logits,
    retrieval_metrics,
    retrieval_scores,
    score_linear_probe,
    shot_accuracies,
)
from pml_supcon.metrics.probe_selection import HELD_OUT
from pml_supcon.training.features import ImagesToEmbed, compute_features
from pml_supcon.training.pictures import draw_embedding_map, draw_gallery, draw_loss_curve
from pml_supcon.training.run import RunContext

KNN_REFERENCES, KNN_QUERIES = 20_000, 5_000  # maximum number of images, because k-NN runs during training
BATCH = 256
CHOOSING = 100  # minimum number of training images to select the probe's penalty
INVERSE_L2 = 1.0  # the penalty with fewer images


class Embedded(NamedTuple):
    """The features of a split ``(N, width)``, their normalised rows, and the labels ``(N, ...)``."""

    features: Tensor
    rows: Tensor
    labels: Tensor


def embed_split(
    images: MemoryImages | LazyImages, labels: Tensor, context: RunContext, encoder: nn.Module
) -> Embedded | None:
    """Compute the features of images with all processes; return None on all but the main one.

    Raises:
        FloatingPointError: If they are not finite, or equal for all images, because the training diverged.
    """
    data = context.data
    prepared = ImagesToEmbed(images, image_size=data.image_size, mean=data.mean, std=data.std)
    workers = context.settings.workers if isinstance(images, LazyImages) else 0
    rows = range(len(images))
    features = compute_features(encoder, prepared, rows, context.accelerator, batch_size=BATCH, workers=workers)
    [broken] = broadcast_object_list([None if features is None else describe_defect(features)])
    if broken:  # raised on all processes, because otherwise the others would wait in a collective
        raise FloatingPointError(f"the encoder's features are {broken} after the last step")
    return None if features is None else Embedded(features, F.normalize(features), labels)


def describe_defect(features: Tensor) -> str | None:
    """Return a description of unusable features, or None."""
    if not features.isfinite().all():
        return "not finite"
    rows = F.normalize(features)  # retrieval uses cosine similarity
    return "the same for all images" if len(rows) > 1 and bool((rows == rows[0]).all()) else None


def scored_images(context: RunContext) -> tuple[MemoryImages | LazyImages, Tensor]:
    """Return the images to score on, test or held-out, with their labels."""
    if context.settings.scored == "held_out":
        return context.held_out, context.split.held_out_labels
    return context.data.test, context.data.test_labels


def embed_splits(context: RunContext, encoder: nn.Module) -> dict[str, Embedded] | None:
    """Compute the features of the training images, with their true labels, and of the images to score on."""
    train = embed_split(context.images, context.split.true_labels, context, encoder)
    test = embed_split(*scored_images(context), context, encoder)
    return None if train is None or test is None else {"train": train, "test": test}


def score(
    embedded: dict[str, Embedded],
    learnt: Tensor,
    classifier: nn.Linear | None,
    seed: int,
    labels_are: LabelsAre = "classes",
) -> dict[str, float]:
    """Return the metrics of retrieval (test queries, training references) and of a linear probe or classifier.

    Retrieval is scored with classes or the finest level of a hierarchy. If all test classes are new, queries are
    retrieved among the test images, and no probe is scored.

    Args:
        embedded: The features of train and test.
        learnt: The noisy labels of train, which the probe is fitted to.
        classifier: A trained classifier to score. None: fit a probe with the penalty selected on a held-out tenth of
            train (see ``choose_inverse_l2``).
        seed: The seed of that tenth.
        labels_are: The kind of the labels.
    """
    train, test = embedded["train"], embedded["test"]
    own, scores = has_new_classes(train.labels, test.labels), dict[str, float]()
    classes, known = classes_of(test.labels), classes_of(train.labels)
    if classes is not None and known is not None:
        rows, ids = (test.rows, classes) if own else (train.rows, known)
        retrieval = retrieval_metrics(test.rows, classes, rows, ids, ref_includes_query=own)
        scores = {f"retrieval/{name}": value for name, value in retrieval.items()}
    if own:
        return scores
    if classifier is not None:
        probe = classifier_metrics(classifier, test.features, test.labels)
        probe |= shots_of(classifier_logits(classifier, test.features).argmax(1), test.labels, learnt)
    else:
        probe = PROBES[labels_are](train, test, learnt, seed)
    return scores | {f"linear_probe/{name}": value for name, value in probe.items()}


def probe_metrics(train: Embedded, test: Embedded, learnt: Tensor, seed: int) -> dict[str, float]:
    """Return the metrics of a linear probe and the selected ``inverse_l2``, because no single one suits all methods.

    For classes of unequal numbers of training images, the accuracies of frequent and rare ones are added.
    """
    chosen, spare = INVERSE_L2, len(learnt) - len(learnt.unique())  # every class keeps an image for fitting
    if len(learnt) >= CHOOSING and spare >= HELD_OUT * len(learnt) + 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the final fit below does warn
            chosen = choose_inverse_l2(train.features, learnt, seed=seed).inverse_l2
    probe = fit_linear_probe(train.features, learnt, inverse_l2=chosen)
    predicted = torch.from_numpy(probe.classes_[probe_logits(probe, test.features).argmax(axis=1)])
    metrics = score_linear_probe(probe, test.features, test.labels) | {"inverse_l2": chosen}
    return metrics | shots_of(predicted, test.labels, learnt)


def shots_of(predicted: Tensor, wanted: Tensor, learnt: Tensor) -> dict[str, float]:
    """Return ``shot_accuracies`` if the classes differ in their group (many, medium or few training images), else none.

    Args:
        predicted: The predicted class of each test image, int64 ``(M,)``.
        wanted: The classes of the test images.
        learnt: The classes of the training images.
    """
    found = shot_accuracies(predicted, wanted, learnt)
    return found if len(found) > 2 else {}  # one group, and the mean over all classes


def _probe_of_largest_share(train: Embedded, test: Embedded, learnt: Tensor, seed: int) -> dict[str, float]:
    """Return the metrics of a linear probe of the class with the largest share."""
    one, other = (each._replace(labels=each.labels.argmax(1)) for each in (train, test))
    return probe_metrics(one, other, learnt.argmax(1), seed)


#: The scores of a linear probe for each kind of labels.
PROBES: dict[LabelsAre, Callable[[Embedded, Embedded, Tensor, int], dict[str, float]]] = {
    "classes": probe_metrics,
    "soft": _probe_of_largest_share,
    "sets": lambda train, test, learnt, seed: label_sets_probe_metrics(
        train.features, learnt, test.features, test.labels, seed=seed
    ),
    "hierarchy": lambda train, test, learnt, seed: level_probe_metrics(
        train.features, learnt, test.features, test.labels, seed=seed
    ),
    "numbers": lambda train, test, learnt, seed: number_probe_metrics(
        train.features, learnt, test.features, test.labels
    ),
}


@torch.no_grad()
def classifier_logits(classifier: nn.Linear, features: Tensor) -> Tensor:
    """Return the logits ``(N, C)`` of a trained linear classifier on features ``(N, width)``, on the CPU."""
    return F.linear(features, classifier.weight.cpu().float(), classifier.bias.cpu().float())


def classifier_metrics(classifier: nn.Linear, features: Tensor, labels: Tensor) -> dict[str, float]:
    """Return ``top1`` and ``top5``, in [0, 1], of a trained linear classifier on features ``(N, width)``."""
    logits = classifier_logits(classifier, features)
    found = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    return {"top1": float(found[:, 0].float().mean()), "top5": float(found.any(1).float().mean())}


def knn_accuracy(context: RunContext, encoder: nn.Module) -> dict[str, float]:
    """Return the k-NN accuracy of held-out images, with training images as references and true labels, of classes.

    A collective: every process must call it; the result is empty on all but the main process.
    """
    parts = []
    for images, labels, most in (
        (context.images, context.split.true_labels, KNN_REFERENCES),
        (context.held_out, context.split.held_out_labels, KNN_QUERIES),
    ):
        some = torch.tensor(evenly(len(images), most))
        parts.append(embed_split(images.select(some, labels[some]), labels[some], context, encoder))
    references, queries = parts
    if references is None or queries is None:
        return {}
    wanted, known = classes_of(queries.labels), classes_of(references.labels)
    assert wanted is not None  # the callback checks that there are classes
    assert known is not None
    found = retrieval_scores(queries.rows, wanted, references.rows, known, at_r=False)
    return {"knn_accuracy": float(found["knn_accuracy"].mean())}


def draw(context: RunContext, embedded: dict[str, Embedded], losses: Sequence[float], steps_per_epoch: int) -> None:
    """Draw the loss curve, the map of the scored embeddings, and, with classes, the gallery of queries and neighbours.

    A picture that fails is a note on standard error.
    """
    names, test, train = context.data.class_names, embedded["test"], embedded["train"]
    own, seed = has_new_classes(train.labels, test.labels), context.settings.seed
    colours, titles = colours_of(test.labels, context.data.labels_are, names)
    pictures: dict[str, Callable[[Path], object]] = {
        "loss_curve.png": lambda path: draw_loss_curve(losses, steps_per_epoch, path),
        "embedding_map.png": lambda path: draw_embedding_map(test.rows, colours, titles, path, seed),
    }
    classes, known = classes_of(test.labels), classes_of(train.labels)
    if classes is not None and known is not None:
        queries = scored_images(context)[0], test.rows, classes
        references = queries if own else (context.images, train.rows, known)
        pictures["gallery.png"] = lambda path: draw_gallery(queries, references, names, path, own=own)
    for name, drawn in pictures.items():
        try:
            drawn(context.run.path / name)
        except Exception as error:  # of any library: the scores are written
            note(f"{name} was not drawn: {error!r}")
