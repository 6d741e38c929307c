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
from pml_supcon.metrics import choose_inverse_l2, linear_probe_metrics, retrieval_metrics, retrieval_scores
from pml_supcon.metrics.probe_selection import HELD_OUT
from pml_supcon.training.features import ImagesToEmbed, compute_features
from pml_supcon.training.pictures import draw_embedding_map, draw_gallery, draw_loss_curve
from pml_supcon.training.run import RunContext

KNN_REFERENCES, KNN_QUERIES = 20_000, 5_000  # maximum number of images, because k-NN runs during training
BATCH = 256
CHOOSING = 100  # minimum number of training images to select the probe's penalty
INVERSE_L2 = 1.0  # the penalty with fewer images


class Embedded(NamedTuple):
    """The features of a split ``(N, width)``, their normalised rows, and the labels ``(N,)``."""

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


def score(embedded: dict[str, Embedded], learnt: Tensor, classifier: nn.Linear | None, seed: int) -> dict[str, float]:
    """Return the metrics of retrieval (test queries, training references) and of a linear classifier.

    If all test classes are new, queries are retrieved among the test images, and no classifier is scored.

    Args:
        embedded: The features of train and test.
        learnt: The noisy labels of train, which the probe is fitted to.
        classifier: A trained classifier to score. None: fit a probe with the penalty selected on a held-out tenth of
            train (see ``choose_inverse_l2``).
        seed: The seed of that tenth.
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
    """Return ``linear_probe_metrics`` and the selected ``inverse_l2``, because no single penalty suits all methods."""
    chosen, spare = INVERSE_L2, len(learnt) - len(learnt.unique())  # every class keeps an image for fitting
    if len(learnt) >= CHOOSING and spare >= HELD_OUT * len(learnt) + 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the final fit below does warn
            chosen = choose_inverse_l2(train.features, learnt, seed=seed).inverse_l2
    metrics = linear_probe_metrics(train.features, learnt, test.features, test.labels, inverse_l2=chosen)
    return metrics | {"inverse_l2": chosen}


def has_new_classes(embedded: dict[str, Embedded]) -> bool:
    """Return True if no test class is a training class, as in zero-shot retrieval."""
    return not bool(torch.isin(embedded["test"].labels, embedded["train"].labels).any())


@torch.no_grad()
def classifier_metrics(classifier: nn.Linear, features: Tensor, labels: Tensor) -> dict[str, float]:
    """Return ``top1`` and ``top5``, in [0, 1], of a trained linear classifier on features ``(N, width)``."""
    weight, bias = classifier.weight.cpu().float(), classifier.bias.cpu().float()
    found = F.linear(features, weight, bias).topk(min(5, len(weight))).indices == labels[:, None]
    return {"top1": float(found[:, 0].float().mean()), "top5": float(found.any(1).float().mean())}


def knn_accuracy(context: RunContext, encoder: nn.Module) -> dict[str, float]:
    """Return the k-NN accuracy of held-out images, with training images as references and true labels.

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
    found = retrieval_scores(queries.rows, queries.labels, references.rows, references.labels, at_r=False)
    return {"knn_accuracy": float(found["knn_accuracy"].mean())}


def draw(context: RunContext, embedded: dict[str, Embedded], losses: Sequence[float], steps_per_epoch: int) -> None:
    """Draw the loss curve, the map of the scored embeddings, and the gallery of queries with their neighbours.

    A picture that fails is a note on standard error.
    """
    names, test, train = context.data.class_names, embedded["test"], embedded["train"]
    queries = scored_images(context)[0], test.rows, test.labels
    own = has_new_classes(embedded)
    references = queries if own else (context.images, train.rows, train.labels)
    seed = context.settings.seed
    pictures: dict[str, Callable[[Path], object]] = {
        "loss_curve.png": lambda path: draw_loss_curve(losses, steps_per_epoch, path),
        "embedding_map.png": lambda path: draw_embedding_map(test.rows, test.labels, names, path, seed),
        "gallery.png": lambda path: draw_gallery(queries, references, names, path, own=own),
    }
    for name, drawn in pictures.items():
        try:
            drawn(context.run.path / name)
        except Exception as error:  # of any library: the scores are written
            note(f"{name} was not drawn: {error!r}")
