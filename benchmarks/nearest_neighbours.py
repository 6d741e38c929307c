"""Compare NNCLR with SimCLR, without labels: on scikit-learn's digits and on a part of CIFAR-10.

    python benchmarks/nearest_neighbours.py --data hf:FOLDER [--quick]

FOLDER has CIFAR-10 as Parquet files. An encoder, a narrow ResNet-10 (with a stem that halves CIFAR's images twice), is
trained on the training part of the digits, and on the first 5,000 training images of CIFAR-10. A linear probe, fitted
on the same images, scores the frozen encoder on the test images. NNCLR has a predictor and a queue beside SimCLR's
encoder and head; all else is the same. The table has the mean and the standard deviation over three seeds: of the
probe's accuracy, and of the share of neighbours of the right class over the first, the middle and the last epoch. Takes
about half an hour on one core.
"""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from label_sets import spread
from long_tail import features
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tables import publish
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pml_supcon.data.images import ImageData, MemoryImages
from pml_supcon.data.load import load_data
from pml_supcon.losses import NearestNeighbourLoss, SupConLossOut
from pml_supcon.models import PredictionHead, ProjectionHead, create_encoder, feature_width
from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.views import MultiViewTensorDataset, augmentation, evaluation_transform, flatten_views, split_views

IMAGES, EPOCHS, SEEDS, BATCH_SIZE, TEMPERATURE, LEARNING_RATE = 5000, {"digits": 60, "CIFAR-10": 30}, 3, 256, 0.1, 0.1
WIDTH, HIDDEN, QUEUE = 128, 512, 2048
HEADER = ["data", "loss", "linear probe", "neighbours, first epoch", "middle", "last"]
METHODS = ("SimCLR", "NNCLR")


class Trained(NamedTuple):
    """A frozen encoder, and the mean ``nn_accuracy`` of each epoch, empty for SimCLR."""

    encoder: nn.Module
    nn_accuracy: list[float]


def main(arguments: Sequence[str] | None = None) -> list[list[str]]:
    """Train and score both methods, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10, as hf:FOLDER")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs of 500 images, and no record")
    options = parser.parse_args(arguments)
    number, seeds = (500, 1) if options.quick else (IMAGES, SEEDS)
    rows = []
    for title, source in (("digits", "digits"), ("CIFAR-10", options.data)):
        data = load_data(source, max_train=number)
        for method in METHODS:
            runs = [train_and_score(data, method, 2 if options.quick else EPOCHS[title], seed) for seed in range(seeds)]
            scores = [spread(values) for values in zip(*runs, strict=True)]
            rows.append([title, method, *scores, *["-"] * (len(HEADER) - 2 - len(scores))])
            print(rows[-1], flush=True)
    publish("nearest_neighbours", HEADER, rows, quick=options.quick, text_columns=2)
    return rows


def train_and_score(data: ImageData, method: str, epochs: int, seed: int) -> list[float]:
    """Return the probe's accuracy, and with NNCLR the neighbours' accuracy in the first, middle and last epoch."""
    if not isinstance(data.train, MemoryImages) or not isinstance(data.test, MemoryImages):
        raise ValueError("Expected images of one size that fit into memory, but got others")
    encoder, found = trained(data.train.images, data.train_labels, data, method, epochs, seed)
    plain = evaluation_transform(data.image_size, mean=data.mean, std=data.std)
    train, test = (features(encoder, plain(part.images)) for part in (data.train, data.test))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    accuracy = float(classifier.fit(train, data.train_labels).score(test, data.test_labels))
    return [accuracy, *(found[epoch] for epoch in (0, (len(found) - 1) // 2, -1) if found)]


def trained(images: Tensor, labels: Tensor, data: ImageData, method: str, epochs: int, seed: int) -> Trained:
    """Train an encoder with a head, and NNCLR's predictor, on images ``(n, C, S, S)``; labels only measure."""
    torch.manual_seed(seed)
    kind: Any = "digits" if data.family == "digits" else "simclr"
    augment = augmentation(kind, data.image_size, mean=data.mean, std=data.std)
    dataset = MultiViewTensorDataset(images, labels, augment, num_views=2)
    sampler = MultiViewBatchSampler(labels, min(BATCH_SIZE, len(labels)), seed=seed)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=dataset.collate)
    encoder = create_encoder(
        "resnet10t",
        in_chans=data.in_chans,
        image_size=data.image_size,
        channels=[32, 64, 128, 256],
        small_stem=data.family == "digits",
    )
    head = ProjectionHead(feature_width(encoder), WIDTH)
    simclr = SupConLossOut(TEMPERATURE)
    nnclr, predictor = NearestNeighbourLoss(simclr, WIDTH, QUEUE), PredictionHead(WIDTH, hidden_features=HIDDEN)
    modules = [encoder, head, predictor] if method == "NNCLR" else [encoder, head]
    weights = [parameter for module in modules for parameter in module.parameters()]
    optimizer = torch.optim.SGD(weights, LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * len(loader))
    found = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        measured = []
        for views, classes in loader:
            # projections and predictions (2 B, D), view-major
            projections = head(encoder(flatten_views(views)))
            if method == "NNCLR":
                predictions = split_views(predictor(projections), 2)
                value = nnclr(predictions, classes, projections=split_views(projections, 2))
                measured += [] if nnclr.nn_accuracy is None else [nnclr.nn_accuracy]
            else:
                value = simclr(split_views(projections, 2))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
        found += [float(torch.stack(measured).mean())] if measured else []
    return Trained(encoder.eval(), found)


if __name__ == "__main__":
    main()
