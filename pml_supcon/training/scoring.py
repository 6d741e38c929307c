"""What the frozen encoder is worth, in figures and pictures."""

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from pml_supcon.data.images import LazyImages, MemoryImages, evenly
from pml_supcon.metrics import choose_inverse_l2, linear_probe_metrics, retrieval_metrics, retrieval_scores
from pml_supcon.metrics.probe_selection import HELD_OUT
from pml_supcon.training import pictures as report
from pml_supcon.training.features import ImagesToEmbed
from pml_supcon.training.features import embed as compute_features
from pml_supcon.training.run import RunContext

KNN_REFERENCES, KNN_QUERIES = 20_000, 5_000  # images at most: it is looked at in the middle of training
BATCH = 256
CHOOSING = 100  # training images at least: fewer would choose a penalty by chance
INVERSE_L2 = 1.0  # where they are fewer


class Embedded(NamedTuple):
    """The encoder's features of a split `(N, width)`, with unit rows beside them, and its labels `(N,)`."""

    features: Tensor
    rows: Tensor
    labels: Tensor


def embed(
    images: MemoryImages | LazyImages, labels: Tensor, context: RunContext, encoder: nn.Module
) -> Embedded | None:
    """The features of images under an encoder, by all processes; None on all but the main one.

    Raises:
        FloatingPointError: they are not finite, or the same for all images: the last steps broke the weights.
    """
    data = context.data
    prepared = ImagesToEmbed(images, image_size=data.image_size, mean=data.mean, std=data.std)
    workers = context.settings.workers if isinstance(images, LazyImages) else 0
    features = compute_features(
        encoder, prepared, range(len(images)), context.accelerator, batch_size=BATCH, workers=workers
    )
    [broken] = broadcast_object_list([None if features is None else describe_defect(features)])
    if broken:  # on all processes, which would wait for each other else
        raise FloatingPointError(f"the encoder's features are {broken} after the last step")
    return None if features is None else Embedded(features, F.normalize(features), labels)


def describe_defect(features: Tensor) -> str | None:
    """What makes features useless, in words; None where they are not."""
    if not features.isfinite().all():
        return "not finite"
    rows = F.normalize(features)  # retrieval goes by their directions
    return "the same for all images" if len(rows) > 1 and bool((rows == rows[0]).all()) else None


def scored_images(context: RunContext) -> tuple[MemoryImages | LazyImages, Tensor]:
    """The images that the encoder is scored on, with their labels."""
    if context.settings.scored == "held_out":
        return context.held_out, context.split.held_out_labels
    return context.data.test, context.data.test_labels


def embed_splits(context: RunContext, encoder: nn.Module) -> dict[str, Embedded] | None:
    """The features of the images that were trained on, with their true labels, and of those that are scored."""
    train = embed(context.images, context.split.true_labels, context, encoder)
    test = embed(*scored_images(context), context, encoder)
    return None if train is None or test is None else {"train": train, "test": test}


def score(embedded: dict[str, Embedded], learnt: Tensor, classifier: nn.Linear | None, seed: int) -> dict[str, float]:
    """Retrieval (test queries among train images), and a linear classifier.

    Where test has none of train's classes, test queries are sought among each other, and there is nothing to classify.

    Args:
        embedded: the splits.
        learnt: the labels of train as training saw them, which a probe is fitted to.
        classifier: one that was trained, which is scored; None: a probe is fitted, with the penalty that a tenth of
            train chooses (see `choose_inverse_l2`).
        seed: of that tenth.
    """
    train, test = embedded["train"], embedded["test"]
    own = has_new_classes(embedded)
    among = test if own else train
    retrieval = retrieval_metrics(test.rows, test.labels, among.rows, among.labels, ref_includes_query=own)
    scores = {f"retrieval/{name}": value for name, value in retrieval.items()}
    if own:
        return scores
    if classifier is None:
        probe = probe_metrics(train, test, learnt, seed)
    else:
        probe = classifier_metrics(classifier, test.features, test.labels)
    return scores | {f"linear_probe/{name}": value for name, value in probe.items()}


def probe_metrics(train: Embedded, test: Embedded, learnt: Tensor, seed: int) -> dict[str, float]:
    """Those of `linear_probe_metrics`, and the `inverse_l2` that was chosen: no one penalty suits all methods."""
    chosen, spare = INVERSE_L2, len(learnt) - len(learnt.unique())  # every label keeps an image to be fitted
    if len(learnt) >= CHOOSING and spare >= HELD_OUT * len(learnt) + 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of many fits; the last one does warn
            chosen = choose_inverse_l2(train.features, learnt, seed=seed).inverse_l2
    metrics = linear_probe_metrics(train.features, learnt, test.features, test.labels, inverse_l2=chosen)
    return metrics | {"inverse_l2": chosen}


def has_new_classes(embedded: dict[str, Embedded]) -> bool:
    """Whether test has none of train's classes: zero-shot retrieval is what it is for."""
    return not bool(torch.isin(embedded["test"].labels, embedded["train"].labels).any())


@torch.no_grad()
def classifier_metrics(classifier: nn.Linear, features: Tensor, labels: Tensor) -> dict[str, float]:
    """`top1` and `top5` of a trained linear classifier on features `(N, width)`, in [0, 1]."""
    weight, bias = classifier.weight.cpu().float(), classifier.bias.cpu().float()
    found = F.linear(features, weight, bias).topk(min(5, len(weight))).indices == labels[:, None]
    return {"top1": float(found[:, 0].float().mean()), "top5": float(found.any(1).float().mean())}


def knn_accuracy(context: RunContext, encoder: nn.Module) -> dict[str, float]:
    """The k-NN accuracy of (some) held-out images among (some) images that are trained on, all with true labels.

    All processes call it; empty on all but the main one.
    """
    parts = []
    for images, labels, most in (
        (context.images, context.split.true_labels, KNN_REFERENCES),
        (context.held_out, context.split.held_out_labels, KNN_QUERIES),
    ):
        some = torch.tensor(evenly(len(images), most))
        parts.append(embed(images.select(some, labels[some]), labels[some], context, encoder))
    references, queries = parts
    if references is None or queries is None:
        return {}
    found = retrieval_scores(queries.rows, queries.labels, references.rows, references.labels, at_r=False)
    return {"knn_accuracy": float(found["knn_accuracy"].mean())}


def draw(context: RunContext, embedded: dict[str, Embedded]) -> None:
    """The map of the scored embeddings and the gallery of scored images with their nearest training images."""
    data, path, test, train = context.data, context.run.path, embedded["test"], embedded["train"]
    report.draw_embedding_map(
        test.rows, test.labels, data.class_names, path / "embedding_map.png", context.settings.seed
    )
    queries, references = (
        (scored_images(context)[0], test.rows, test.labels),
        (context.images, train.rows, train.labels),
    )
    own = has_new_classes(embedded)
    report.draw_gallery(queries, queries if own else references, data.class_names, path / "gallery.png", own=own)
