"""Stage 2 of the recipe: what the frozen encoder is worth, in figures and pictures."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from pml_supcon.recipes import report
from pml_supcon.recipes.job import Job
from pml_supcon.recipes.settings import TrainSettings
from pml_supcon.testers import LinearProbeTester, linear_probe_metrics, retrieval_metrics
from pml_supcon.views import evaluation_transform


class Transformed(Dataset[tuple[Tensor, int]]):
    """A data set of `(image, label)` with a transform on the images."""

    def __init__(self, dataset: Any, transform: Callable[[Any], Tensor]) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.dataset[index]
        return self.transform(image), label


class Embedded(NamedTuple):
    """The encoder's features of a split `(N, width)`, with unit rows beside them, and its labels `(N,)`."""

    features: Tensor
    rows: Tensor
    labels: Tensor


def embed(job: Job, settings: TrainSettings, device: torch.device) -> dict[str, Embedded]:
    """The features of both splits under the frozen encoder, computed once.

    Raises:
        FloatingPointError: they are not finite: the last steps broke the weights.
    """
    data = job.data
    transform = evaluation_transform(data.image_size, mean=data.mean, std=data.std)
    tester = LinearProbeTester(batch_size=256, dataloader_num_workers=settings.workers, data_device=device)
    embedded = {}
    for name, images, labels in (("train", data.train, data.train_labels), ("test", data.test, data.test_labels)):
        features = tester.get_all_embeddings(Transformed(images, transform), job.model.encoder)[0].cpu()
        if not features.isfinite().all():
            raise FloatingPointError(
                "the encoder's features are not finite after the last step; a lower --learning_rate may help"
            )
        embedded[name] = Embedded(features, F.normalize(features), labels)
    return embedded


def score(embedded: dict[str, Embedded]) -> dict[str, float]:
    """Retrieval (test queries among train images) and a linear probe (fitted on train, scored on test)."""
    train, test = embedded["train"], embedded["test"]
    retrieval = retrieval_metrics(test.rows, test.labels, train.rows, train.labels)
    probe = linear_probe_metrics(train.features, train.labels, test.features, test.labels)
    scores = {f"retrieval/{name}": value for name, value in retrieval.items()}
    return scores | {f"linear_probe/{name}": value for name, value in probe.items()}


def draw(job: Job, settings: TrainSettings, embedded: dict[str, Embedded]) -> None:
    """The map of the test embeddings and the gallery of test images with their nearest training images."""
    data, path, test, train = job.data, job.run.path, embedded["test"], embedded["train"]
    report.draw_embedding_map(test.rows, test.labels, data.class_names, path / "embedding_map.png", settings.seed)
    queries, references = (data.test, test.rows, test.labels), (data.train, train.rows, train.labels)
    report.draw_gallery(queries, references, data.class_names, path / "gallery.png")
