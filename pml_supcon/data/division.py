"""Which training images are trained on, which are held out, and the labels that training sees."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pml_supcon.data.images import ImageData, LazyImages, MemoryImages
from pml_supcon.data.subsets import stratified_subset

HELD_OUT_SEED = 1  # the same images in every run, whatever its seed, so that runs can be compared


@dataclass(frozen=True)
class Division:
    """A division of the training images, known from the labels alone.

    Attributes:
        train: positions of the images that are trained on, int64, rising.
        held_out: those of the others; may be empty.
        labels: of `train` as training sees them, int64.
        true_labels: of `train` as they are.
        held_out_labels: of `held_out` as they are.
    """

    train: Tensor
    held_out: Tensor
    labels: Tensor
    true_labels: Tensor
    held_out_labels: Tensor

    @property
    def wrong(self) -> int:
        """How many labels are not the true ones."""
        return int((self.labels != self.true_labels).sum())

    def training_images(self, data: ImageData) -> MemoryImages | LazyImages:
        """The images that are trained on, with the labels that training sees."""
        if not len(self.held_out) and not self.wrong:
            return data.train
        return data.train.select(self.train, self.labels)

    def held_out_images(self, data: ImageData) -> MemoryImages | LazyImages:
        """The images that are held out."""
        return data.train.select(self.held_out, self.held_out_labels)


def divide(labels: Tensor, *, held_out: float, label_noise: float, seed: int) -> Division:
    """Hold out a share of every class, and give a share of the others a wrong label.

    Args:
        labels: of all training images, int64 `(n,)`.
        held_out: share that is held out, in [0, 1).
        label_noise: share of the rest whose label becomes another class, each with equal chance, in [0, 1].
        seed: of the noise.

    Raises:
        ValueError: a share that leaves a class without an image on one side, or noise with one class.
    """
    apart = _held_out(labels, held_out)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[apart] = False
    train = kept.nonzero()[:, 0]
    true = labels[train]
    return Division(train, apart, _noisy(true, label_noise, seed), true, labels[apart])


def _held_out(labels: Tensor, share: float) -> Tensor:
    if share == 0:
        return torch.empty(0, dtype=torch.long)
    counts = labels.bincount()
    classes, number = int((counts > 0).sum()), round(share * len(labels))
    if number < classes or int(counts[counts > 0].min()) < 2:
        raise ValueError(
            f"Expected --held_out to leave an image of each of {classes} classes on both sides, but {share} of "
            f"{len(labels)} are {number} and the rarest class has {int(counts[counts > 0].min())}"
        )
    apart = torch.tensor(stratified_subset(labels, number, HELD_OUT_SEED))
    left = counts - labels[apart].bincount(minlength=len(counts))
    if bool((left[counts > 0] == 0).any()):
        raise ValueError(f"Expected --held_out to leave an image of each class to train on, but got {share}")
    return apart


def _noisy(labels: Tensor, share: float, seed: int) -> Tensor:
    number = round(share * len(labels))
    if number == 0:
        return labels
    names = labels.unique()
    if len(names) < 2:
        raise ValueError(f"Expected at least 2 classes for --label_noise, but got {len(names)}")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[:number]
    place = torch.searchsorted(names, labels[chosen])
    further = torch.randint(1, len(names), (number,), generator=generator)
    noisy = labels.clone()
    noisy[chosen] = names[(place + further) % len(names)]
    return noisy
