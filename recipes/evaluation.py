"""What the frozen encoder is worth, in figures and pictures."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from pml_supcon.recipes import report
from pml_supcon.recipes.data import LazyImages, MemoryImages
from pml_supcon.recipes.image_pool import evenly
from pml_supcon.recipes.job import Job
from pml_supcon.testers import LinearProbeTester, linear_probe_metrics, retrieval_metrics
from pml_supcon.views import SeededDataset, evaluation_transform

KNN_REFERENCES, KNN_QUERIES = 20_000, 5_000  # images at most: other processes wait meanwhile
BATCH = 256


class Transformed(Dataset[tuple[Tensor, int]]):
    """A data set of `(image, label)` with a transform on the images; those in memory pass by whole batches."""

    def __init__(self, dataset: MemoryImages | LazyImages, transform: Callable[[Any], Tensor]) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """A batch, made."""
        if isinstance(self.dataset, MemoryImages):
            chosen = torch.as_tensor(indices)
            return self.transform(self.dataset.images[chosen]), self.dataset.labels[chosen]
        pairs = [self.dataset[index] for index in indices]
        return default_collate([(self.transform(image), label) for image, label in pairs])


class Embedded(NamedTuple):
    """The encoder's features of a split `(N, width)`, with unit rows beside them, and its labels `(N,)`."""

    features: Tensor
    rows: Tensor
    labels: Tensor


def embed(images: MemoryImages | LazyImages, job: Job, encoder: nn.Module, device: torch.device) -> Embedded:
    """The features of images under an encoder, which is left in evaluation mode.

    Raises:
        FloatingPointError: they are not finite: the last steps broke the weights.
    """
    data = job.data
    transform = evaluation_transform(data.image_size, mean=data.mean, std=data.std)
    workers = job.settings.workers if isinstance(images, LazyImages) else 0
    tester = LinearProbeTester(batch_size=BATCH, dataloader_num_workers=workers, data_device=device)
    made = tester.get_all_embeddings(Transformed(images, transform), encoder, collate_fn=SeededDataset.collate)
    features = made[0].cpu()
    if not features.isfinite().all():
        raise FloatingPointError("the encoder's features are not finite after the last step")
    return Embedded(features, F.normalize(features), images.labels)


def embed_splits(job: Job, encoder: nn.Module, device: torch.device) -> dict[str, Embedded]:
    """The features of the images that were trained on, with their true labels, and of the test split."""
    train = embed(job.images, job, encoder, device)
    return {
        "train": train._replace(labels=job.division.true_labels),
        "test": embed(job.data.test, job, encoder, device),
    }


def score(embedded: dict[str, Embedded], learnt: Tensor, classifier: nn.Linear | None) -> dict[str, float]:
    """Retrieval (test queries among train images), and a linear classifier.

    Args:
        embedded: the splits.
        learnt: the labels of train as training saw them, which a probe is fitted to.
        classifier: one that was trained, which is scored; None: a probe is fitted.
    """
    train, test = embedded["train"], embedded["test"]
    retrieval = retrieval_metrics(test.rows, test.labels, train.rows, train.labels)
    scores = {f"retrieval/{name}": value for name, value in retrieval.items()}
    if classifier is None:
        probe = linear_probe_metrics(train.features, learnt, test.features, test.labels)
    else:
        probe = classifier_metrics(classifier, test.features, test.labels)
    return scores | {f"linear_probe/{name}": value for name, value in probe.items()}


@torch.no_grad()
def classifier_metrics(classifier: nn.Linear, features: Tensor, labels: Tensor) -> dict[str, float]:
    """`top1` and `top5` of a trained linear classifier on features `(N, width)`, in [0, 1]."""
    weight, bias = classifier.weight.cpu().float(), classifier.bias.cpu().float()
    found = F.linear(features, weight, bias).topk(min(5, len(weight))).indices == labels[:, None]
    return {"top1": float(found[:, 0].float().mean()), "top5": float(found.any(1).float().mean())}


def knn_accuracy(job: Job, encoder: nn.Module, device: torch.device) -> dict[str, float]:
    """The k-NN accuracy of (some) held-out images among (some) images that are trained on, all with true labels."""
    parts = []
    for images, labels, most in (
        (job.images, job.division.true_labels, KNN_REFERENCES),
        (job.held_out, job.division.held_out_labels, KNN_QUERIES),
    ):
        some = torch.tensor(evenly(len(images), most))
        parts.append(embed(images.select(some, labels[some]), job, encoder, device))
    references, queries = parts
    found = retrieval_metrics(queries.rows, queries.labels, references.rows, references.labels)
    return {"knn_accuracy": found["knn_accuracy"]}


def draw(job: Job, embedded: dict[str, Embedded]) -> None:
    """The map of the test embeddings and the gallery of test images with their nearest training images."""
    data, path, test, train = job.data, job.run.path, embedded["test"], embedded["train"]
    report.draw_embedding_map(test.rows, test.labels, data.class_names, path / "embedding_map.png", job.settings.seed)
    queries, references = (data.test, test.rows, test.labels), (job.images, train.rows, train.labels)
    report.draw_gallery(queries, references, data.class_names, path / "gallery.png")
