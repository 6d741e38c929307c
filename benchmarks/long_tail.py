"""Compare remedies for a long tail of classes on CIFAR-10: balanced denominators, balanced draws.

    python benchmarks/long_tail.py --data hf:FOLDER [--quick]

FOLDER has CIFAR-10 as Parquet files. About 5,000 training images are kept, the most frequent class with 100 times the
images of the rarest: an exponential profile, as of Cui et al. (CVPR 2019). A narrow ResNet-10 with a stem that halves
the image twice is trained for 20 epochs. A linear probe with balanced class weights, fitted on the same images, scores
the frozen encoder on all test images. The table has the mean and the standard deviation over three seeds of its
accuracy, and the accuracies of the three most frequent, the four next and the three rarest classes. Takes about half an
hour on two cores.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from label_sets import spread
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tables import publish
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pml_supcon.data.images import MemoryImages
from pml_supcon.data.load import load_data
from pml_supcon.losses import SupConLossOut
from pml_supcon.models import ProjectionHead, create_encoder, feature_width
from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.views import (
    MultiViewTensorDataset,
    contrastive_augmentation,
    evaluation_transform,
    flatten_views,
    split_views,
)

IMAGES, RATIO = 5000, 100
EPOCHS, BATCH_SIZE, SEEDS, TEMPERATURE, LEARNING_RATE = 20, 256, 3, 0.1, 0.1
GROUPS = {"3 most frequent": slice(0, 3), "4 next": slice(3, 7), "3 rarest": slice(7, 10)}
HEADER = ["training of the encoder", "accuracy", *GROUPS]
#: Arguments of the loss and of the sampler, by method.
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "`SupConLossOut`": ({}, {}),
    "`class_balanced=True`": ({"class_balanced": True}, {}),
    '`draw="class_balanced"`': ({}, {"draw": "class_balanced"}),
}


def main(arguments: Sequence[str] | None = None) -> list[list[str]]:
    """Train and score all methods, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10, as hf:FOLDER")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch of 250 images, and no record")
    options = parser.parse_args(arguments)
    data = load_data(options.data)
    number, seeds, epochs = (250, 1, 1) if options.quick else (IMAGES, SEEDS, EPOCHS)
    if not isinstance(data.train, MemoryImages) or not isinstance(data.test, MemoryImages):
        raise ValueError(f"Expected images of one size that fit into memory, but {options.data} has others")
    pixels = {"train": data.train.images, "test": data.test.images}
    kept = long_tail(data.train_labels, number)
    moments: dict[str, Any] = {"mean": data.mean, "std": data.std}
    rows = []
    for name, (of_loss, of_sampler) in METHODS.items():
        found = []
        for seed in range(seeds):
            loss = SupConLossOut(TEMPERATURE, **of_loss)
            encoder = trained(pixels["train"][kept], data.train_labels[kept], loss, of_sampler, moments, epochs, seed)
            plain = evaluation_transform(data.image_size, **moments)
            train, test = (features(encoder, plain(images)) for images in (pixels["train"][kept], pixels["test"]))
            found.append(probe(train, data.train_labels[kept], test, data.test_labels))
        rows.append([name, *(spread(values) for values in zip(*found, strict=True))])
        print(rows[-1], flush=True)
    publish("long_tail", HEADER, rows, quick=options.quick)
    return rows


def long_tail(labels: Tensor, number: int) -> Tensor:
    """Return the indices of about ``number`` images, of class c the first ``n_0 RATIO^(-c / (C - 1))`` ones."""
    classes = int(labels.max()) + 1
    profile = RATIO ** (-np.arange(classes) / (classes - 1))
    counts = np.maximum(np.round(number * profile / profile.sum()), 2).astype(int)
    return torch.cat([(labels == c).nonzero()[: counts[c], 0] for c in range(classes)])


def trained(
    images: Tensor,
    labels: Tensor,
    loss: nn.Module,
    of_sampler: dict[str, Any],
    moments: dict[str, Any],
    epochs: int,
    seed: int,
) -> nn.Module:
    """Train an encoder with a projection head on images ``(n, C, S, S)`` and return it, frozen."""
    torch.manual_seed(seed)
    channels, size = images.shape[1:3]
    augment = contrastive_augmentation(size, **moments)
    dataset = MultiViewTensorDataset(images, labels, augment, num_views=2)
    sampler = MultiViewBatchSampler(labels, min(BATCH_SIZE, len(labels)), seed=seed, **of_sampler)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=dataset.collate)
    encoder = create_encoder(
        "resnet10t", in_chans=channels, image_size=size, channels=[32, 64, 128, 256], small_stem=False
    )
    head = ProjectionHead(feature_width(encoder))
    optimizer = torch.optim.SGD(
        [*encoder.parameters(), *head.parameters()], LEARNING_RATE, momentum=0.9, weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * len(loader))
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for views, classes in loader:
            value = loss(split_views(head(encoder(flatten_views(views))), 2), classes)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
    frozen: nn.Module = encoder.eval()
    return frozen


@torch.no_grad()
def features(encoder: nn.Module, images: Tensor) -> np.ndarray:
    """Return the features of images, ``(N, width)``."""
    return torch.cat([encoder(part) for part in images.split(500)]).numpy()


def probe(train: np.ndarray, labels: Tensor, test: np.ndarray, wanted: Tensor) -> list[float]:
    """Return the accuracy of a linear probe on a balanced test set, and its mean over each group of classes."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=500))
    recalls = recall_score(wanted, classifier.fit(train, labels).predict(test), average=None)
    return [float(recalls.mean()), *(float(recalls[group].mean()) for group in GROUPS.values())]


if __name__ == "__main__":
    main()
