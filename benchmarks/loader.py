"""Compare the views per second of our loader with the usual pipeline; measure the share of the loss in a step.

    python benchmarks/loader.py [--quick] [--data FOLDER]

CIFAR-10 in batches of 512 images with two views each, SimCLR's augmentation. Ours is the loader of the recipe:
`MultiViewTensorDataset` with a seed for each batch, which creates the views of a whole batch at once from images in
memory. The usual one converts each array in memory to a PIL image, applies torchvision's transforms to it twice and
collates tensors. Both have the same number of workers with one thread each; the main process has one thread too, since
on a busy machine the wait for threads would dominate. An epoch is timed from the request for its first batch to the
arrival of its last, with running workers; the figure is the median of epochs in turns.

The training step has the recipe's default encoder, a narrow resnet10t, and a projection head, on a batch of 512 images
with two views: forward, `SupConLossOut`, backward, SGD. The share of the loss is its own forward and backward pass.
Takes about three minutes on two idle cores.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from PIL import Image
from tables import publish, ratio, shown
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pml_supcon.data.images import ImageData, MemoryImages
from pml_supcon.data.load import load_data
from pml_supcon.losses import SupConLossOut
from pml_supcon.models import ProjectionHead, create_encoder, feature_width
from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.views import AUGMENTATIONS, MultiViewTensorDataset, SeededDataset, augmentation, flatten_views

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"
HEADER = ["CIFAR-10, 32 x 32", "ours", "PIL images", "ours over PIL", "aim"]
WORKERS = (0, 2)
VIEWS = 2


class Sizes(NamedTuple):
    """Images of an epoch and of a batch, epochs of each loader, steps of training, calls of each augmentation."""

    images: int = 5_120
    batch: int = 512
    epochs: int = 5
    steps: int = 4
    calls: int = 15


QUICK = Sizes(images=96, batch=32, epochs=1, steps=1, calls=1)


class PilViews(Dataset[tuple[list[Tensor], int]]):
    """The usual data set: a PIL image per item, as of torchvision's `CIFAR10`, and a call of the transform per view."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Any], Tensor]) -> None:
        self.arrays, self.labels = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        image = Image.fromarray(self.arrays[index])
        return [self.transform(image) for _ in range(VIEWS)], self.labels[index]


def usual_loader(data: ImageData, images: Tensor, labels: Tensor, batch: int, workers: int) -> DataLoader[Any]:
    """Return a loader of PIL images with torchvision's transforms."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(data.image_size, scale=(0.2, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    views = PilViews(images, labels, transform)
    return DataLoader(views, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def our_loader(data: ImageData, images: Tensor, labels: Tensor, batch: int, workers: int) -> DataLoader[Any]:
    """Return the recipe's loader, which creates the views of a whole batch at once."""
    transform = augmentation("simclr", data.image_size, mean=data.mean, std=data.std)
    views: Any = SeededDataset(MultiViewTensorDataset(images, labels, transform, VIEWS))
    options: Any = {"num_workers": workers, "collate_fn": views.collate, "persistent_workers": workers > 0}
    return DataLoader(views, batch_sampler=MultiViewBatchSampler(labels, batch), **options)


def epoch_seconds(loader: DataLoader[Any], images: int) -> float:
    """Return the seconds of an epoch; raise unless it has all images."""
    started = time.perf_counter()
    came = sum(len(labels) for _, labels in loader)
    seconds = time.perf_counter() - started
    if came != images:
        raise RuntimeError(f"Expected an epoch of {images} images, but got {came}")
    return seconds


class Line(NamedTuple):
    """A row of the table: our figure, the figure of the usual loader if it has one, and the aim."""

    what: str
    ours: float
    usual: float | None = None
    aim: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return the row as text."""
        if "%" in self.what:
            return self.what, shown(self.ours, 1), "-", "-", self.aim
        return self.what, shown(self.ours, 0), shown(self.usual, 0), shown(ratio(self.ours, self.usual), 1), self.aim


def loader_lines(data: ImageData, images: Tensor, labels: Tensor, sizes: Sizes) -> Iterator[Line]:
    """Yield the views per second of both loaders for each number of workers."""
    makers = {"ours": our_loader, "usual": usual_loader}
    for workers in WORKERS:
        loaders = {who: make(data, images, labels, sizes.batch, workers) for who, make in makers.items()}
        times: dict[str, list[float]] = {who: [] for who in makers}
        for done in range(sizes.epochs + 1):
            for who in list(makers)[:: 1 if done % 2 else -1]:
                seconds = epoch_seconds(loaders[who], len(images))
                if done:  # the first starts the workers and warms up
                    times[who].append(seconds)
        figures = {who: VIEWS * len(images) / median(seconds) for who, seconds in times.items()}
        title = f"views a second, {workers or 'no'} workers"
        yield Line(title, figures["ours"], figures["usual"], "at least 2 x")


class Training:
    """The recipe's default encoder with a head, and its loss."""

    def __init__(self, data: ImageData) -> None:
        torch.manual_seed(0)
        encoder = create_encoder("resnet10t", in_chans=3, image_size=data.image_size, channels=[32, 64, 128, 256])
        self.model = nn.Sequential(encoder, ProjectionHead(feature_width(encoder), 128))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.loss = SupConLossOut()

    def step(self, views: Tensor, labels: Tensor) -> tuple[float, float]:
        """Return the seconds of a step and of its loss; views (B, V, C, H, W)."""
        self.optimizer.zero_grad()
        marks = [time.perf_counter()]
        embeddings = self.model(flatten_views(views))
        marks.append(time.perf_counter())
        leaf = embeddings.detach().requires_grad_()
        self.loss(leaf, labels.repeat(views.shape[1])).backward()
        marks.append(time.perf_counter())
        embeddings.backward(leaf.grad)
        self.optimizer.step()
        marks.append(time.perf_counter())
        return marks[3] - marks[0], marks[2] - marks[1]


def loss_line(data: ImageData, images: Tensor, labels: Tensor, sizes: Sizes) -> Line:
    """Return the share of the loss in a training step."""
    training = Training(data)
    views, labels = next(iter(our_loader(data, images, labels, sizes.batch, 0)))
    steps = [training.step(views, labels) for _ in range(sizes.steps + 1)][1:]
    share = median(loss / step for step, loss in steps)
    return Line("the loss in a step of training, %", 100 * share, aim="under 3")


def augmentation_lines(data: ImageData, images: Tensor, sizes: Sizes) -> Iterator[Line]:
    """Yield the views per second of each augmentation alone, on the rows of a batch, in turns."""
    rows = images[: sizes.batch].repeat(VIEWS, 1, 1, 1)
    made = {name: augmentation(name, data.image_size, mean=data.mean, std=data.std) for name in AUGMENTATIONS}
    times: dict[str, list[float]] = {name: [] for name in made}
    for done in range(sizes.calls + 1):
        for name in AUGMENTATIONS[:: 1 if done % 2 else -1]:
            started = time.perf_counter()
            made[name](rows)
            if done:
                times[name].append(time.perf_counter() - started)
    for name, seconds in times.items():
        yield Line(f'views a second, `augmentation("{name}")`', len(rows) / median(seconds))


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    """Measure, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="96 images, one repetition, only to try the script")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with CIFAR-10 as Parquet files (%(default)s)")
    asked = parser.parse_args(arguments)
    if not any(asked.data.glob("*.parquet")):
        parser.error(f"--data: expected a folder with CIFAR-10's Parquet files, but {asked.data} has none")
    sizes = QUICK if asked.quick else Sizes()
    data = load_data(f"hf:{asked.data}", max_train=sizes.images, max_test=sizes.images)
    if not isinstance(data.train, MemoryImages):
        parser.error(f"--data: expected images of one size, but those in {asked.data} differ")
    images, labels = data.train.images, data.train.labels
    torch.set_num_threads(1)  # as a worker of a loader
    lines = [*loader_lines(data, images, labels, sizes), loss_line(data, images, labels, sizes)]
    lines += augmentation_lines(data, images, sizes)
    publish("loader", HEADER, [line.cells() for line in lines], quick=asked.quick)
    return lines


if __name__ == "__main__":
    main()
