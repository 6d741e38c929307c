"""Splits of a data set: train and test, stratified subsets, held-out images, label noise, selected classes."""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from pml_supcon.data.images import ImageData, LazyImages, MemoryImages, Pool, Source

SPLIT_SEED = 0  # of the 70/30 split: the same test images in every run, whatever the run's seed
TEST_SHARE = 0.3
NewClasses = Literal["none", "all", "some"]  # that test may have and train lacks


def split_source(source: Source, spec: str, *, new_classes: NewClasses) -> tuple[Pool, Pool]:
    """Return train and test, splitting train where there is no test part.

    Raises:
        ValueError: there is nothing to train on or to tell apart, too little to split, or a test class not allowed.
    """
    if not len(source.train) or (source.test is not None and not len(source.test)):
        raise ValueError(f"Expected images in {spec!r}, but train or test has none")
    if len(source.train.labels.bincount().nonzero()) < 2:
        raise ValueError(f"Expected at least 2 classes in {spec!r}, but all images of train have one label")
    if source.test is not None:
        known, tested = set(source.train.labels.tolist()), set(source.test.labels.tolist())
        strange = sorted(tested - known)
        if strange and not (new_classes == "some" or (new_classes == "all" and not tested & known)):
            names = ", ".join(source.class_names[label] for label in strange)
            either = ", all or none of them" if new_classes == "all" else ""
            raise ValueError(
                f"Expected the test classes of {spec!r} to be among those of train{either}, but {names} are not"
            )
        return source.train, source.test
    labels = source.train.labels
    counts = labels.bincount()
    classes = int((counts > 0).sum())
    single = [source.class_names[label] for label in (counts == 1).nonzero().flatten().tolist()]
    if single:
        raise ValueError(
            f"Expected at least 2 images of every class of {spec!r}, to split it into train and test, but there is one "
            f"of {', '.join(single)}"
        )
    if int(len(labels) * TEST_SHARE) < classes:
        raise ValueError(
            f"Expected 30 % of the images of {spec!r} to cover its {classes} classes, but it has {len(labels)}"
        )
    chosen = train_test_split(
        range(len(labels)), test_size=TEST_SHARE, stratify=labels.numpy(), random_state=SPLIT_SEED
    )
    train, test = (source.train.select(sorted(indices)) for indices in chosen)
    return train, test


def subset_of(pool: Pool, most: int | None, name: str, seed: int, *, first: bool) -> Pool:
    """At most so many images: the first ones where that is asked for and they have all classes, else a drawn subset.

    Raises:
        ValueError: there are more classes; it names the argument.
    """
    if most is None or most >= len(pool):
        return pool
    classes = len(pool.labels.bincount().nonzero())
    if most < classes:
        raise ValueError(f"Expected argument `{name}` to be at least the number of classes, {classes}, but got {most}")
    if first and len(pool.labels[:most].bincount().nonzero()) == classes:
        return pool.select(range(most))
    return pool.select(stratified_subset(pool.labels, most, seed))


def stratified_subset(labels: Tensor, count: int, seed: int) -> list[int]:
    """Draw `count` indices with every class in its share, and at least one of each, in rising order.

    Args:
        labels: int64 (n,).
        count: at least the number of classes and at most n.
        seed: of the draw.

    Examples:
        >>> len(stratified_subset(torch.tensor([0] * 90 + [1] * 10), 20, seed=0))
        20
    """
    counts = labels.bincount()
    values = counts.nonzero().flatten()
    sizes = counts[values]
    exact = sizes * count / len(labels)
    quota = exact.floor().long().clamp(min=1)
    while (left := count - int(quota.sum())) != 0:  # round by the largest remainder
        gap = exact - quota
        if left > 0:
            quota[gap.masked_fill(quota >= sizes, -torch.inf).argmax()] += 1
        else:
            quota[gap.masked_fill(quota <= 1, torch.inf).argmin()] -= 1
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    for value, take in zip(values, quota.tolist(), strict=True):
        members = (labels == value).nonzero().squeeze(1)
        chosen += members[torch.randperm(len(members), generator=generator)[:take]].tolist()
    return sorted(chosen)


HELD_OUT_SEED = 1  # the same images in every run, whatever its seed, so that runs can be compared


@dataclass(frozen=True)
class TrainingSplit:
    """A split of the training images, known from the labels alone.

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


def split_training_set(labels: Tensor, *, held_out: float, label_noise: float, seed: int) -> TrainingSplit:
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
    return TrainingSplit(train, apart, _noisy(true, label_noise, seed), true, labels[apart])


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


def with_classes(source: Source, wanted: str, spec: str) -> Source:
    """The same data set with some of its classes, numbered anew from 0 in their old order.

    Args:
        source: the data set.
        wanted: names or numbers of classes and ranges of numbers, joined by commas: `cat,dog`, `0-4`, `0,2,7-9`. A name
            goes before a number.
        spec: what was given, for errors.

    Raises:
        ValueError: a class that there is not, or fewer than two.
    """
    kept = sorted({label for part in wanted.split(",") for label in _labels_of(part, source.class_names, spec)})
    if len(kept) < 2:
        raise ValueError(f"Expected at least 2 classes after `classes=`, but got {spec!r}")
    return Source(
        train=_only(source.train, kept),
        test=None if source.test is None else _only(source.test, kept),
        class_names=tuple(source.class_names[label] for label in kept),
        symbols=source.symbols,
        shuffled=source.shuffled,
    )


def _labels_of(part: str, names: tuple[str, ...], spec: str) -> list[int]:
    if part in names:
        return [names.index(part)]
    numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        if first <= last < len(names):
            return list(range(first, last + 1))
    raise ValueError(
        f"Expected names of classes or numbers from 0 to {len(names) - 1} after `classes=`, such as `0-4` or "
        f"`{names[0]},{names[-1]}`, but got {part!r} in {spec!r}"
    )


def _only(pool: Pool, kept: list[int]) -> Pool:
    wanted = torch.tensor(kept)
    chosen = pool.select(torch.isin(pool.labels, wanted).nonzero()[:, 0].tolist())
    return Pool(chosen.images, torch.searchsorted(wanted, chosen.labels))
