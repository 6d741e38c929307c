"""Stage 2 of the recipe: what the frozen encoder is worth, in figures and pictures."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from pml_supcon.models import save_encoder
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


def evaluate(job: Job, settings: TrainSettings, device: torch.device) -> dict[str, float]:
    """Save the encoder, embed both splits once, score them and draw them.

    The test images are the queries, the training images the references and the data of the linear probe.
    """
    data, path = job.data, job.run.path
    encoder = job.model.encoder.eval()
    save_encoder(encoder, path / "encoder", mean=data.mean, std=data.std)
    transform = evaluation_transform(data.image_size, mean=data.mean, std=data.std)
    tester = LinearProbeTester(batch_size=256, dataloader_num_workers=settings.workers, data_device=device)
    images = {"train": data.train, "test": data.test}
    features = {
        name: tester.get_all_embeddings(Transformed(split, transform), encoder)[0].cpu()
        for name, split in images.items()
    }
    rows = {name: F.normalize(split) for name, split in features.items()}
    labels = {"train": data.train_labels, "test": data.test_labels}
    retrieval = retrieval_metrics(rows["test"], labels["test"], rows["train"], labels["train"])
    probe = linear_probe_metrics(features["train"], labels["train"], features["test"], labels["test"])
    report.draw_embedding_map(rows["test"], labels["test"], data.class_names, path / "embedding_map.png", settings.seed)
    shown = {name: (images[name], rows[name], labels[name]) for name in images}
    report.draw_gallery(shown["test"], shown["train"], data.class_names, path / "gallery.png")
    scores = {f"retrieval/{name}": value for name, value in retrieval.items()}
    return scores | {f"linear_probe/{name}": value for name, value in probe.items()}
