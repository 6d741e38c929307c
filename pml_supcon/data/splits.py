"""Splits of a data set: train and test, stratified subsets, held-out images, label noise, selected classes."""

import re
from dataclasses import dataclass, replace
from typing import Literal

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from pml_supcon._strata import stratified_quotas
from pml_supcon.data.images import ImageData, LazyImages, MemoryImages, Pool, Source
from pml_supcon.data.label_kinds import classes_of

SPLIT_SEED = 0  # seed of the 70/30 split: every run has the same test images
TEST_SHARE = 0.3
LEAST_TO_SPLIT = 4  # images, of which two are for the test
NewClasses = Literal["none", "all", "some"]  # allowed test classes that train lacks


def split_source(source: Source, spec: str, *, new_classes: NewClasses) -> tuple[Pool, Pool]:
    """Return train and test; split train 70/30 if the source has no test split, stratified where there are classes.

    Raises:
        ValueError: If a split is empty, train has fewer than 2 classes or labels or too few images to split, or test
            has a class that ``new_classes`` does not allow, or a new class alone.
    """
    if not len(source.train) or (source.test is not None and not len(source.test)):
        raise ValueError(f"Expected images in {spec!r}, but train or test has none")
    labels = source.train.labels
    if bool((labels == labels[0]).all()):
        expected = "labels that differ" if classes_of(labels) is None else "at least 2 classes"
        raise ValueError(f"Expected {expected} in {spec!r}, but all images of train have one label")
    classes = classes_of(labels)
    if classes is None:
        return _split_unstratified(source, spec) if source.test is None else (source.train, source.test)
    if source.test is not None:
        known, tested = set(classes.tolist()), set(_classes(source.test).tolist())
        strange = sorted(tested - known)
        names = ", ".join(source.class_names[label] for label in strange)
        if len(tested) == 1 and strange and new_classes != "none":
            raise ValueError(
                f"Expected test images of {spec!r} with labels, but all are of one class that training lacks, {names!r}"
            )
        if strange and not (new_classes == "some" or (new_classes == "all" and not tested & known)):
            either = " (or none of them)" if new_classes == "all" else ""
            raise ValueError(
                f"Expected every test class of {spec!r} to be a training class{either}, but {names} are not"
            )
        return source.train, source.test
    counts = classes.bincount()
    number = int((counts > 0).sum())
    single = [source.class_names[label] for label in (counts == 1).nonzero().flatten().tolist()]
    if single:
        raise ValueError(
            f"Expected at least 2 images of every class of {spec!r}, to split it into train and test, but there is one "
            f"of {', '.join(single)}"
        )
    if int(len(labels) * TEST_SHARE) < number:
        raise ValueError(
            f"Expected 30 % of the images of {spec!r} to cover its {number} classes, but it has {len(labels)}"
        )
    chosen = train_test_split(
        range(len(labels)), test_size=TEST_SHARE, stratify=classes.numpy(), random_state=SPLIT_SEED
    )
    train, test = (source.train.select(sorted(indices)) for indices in chosen)
    return train, test


def _split_unstratified(source: Source, spec: str) -> tuple[Pool, Pool]:
    if len(source.train) < LEAST_TO_SPLIT:
        raise ValueError(
            f"Expected at least {LEAST_TO_SPLIT} images in {spec!r}, to split it into train and test, but it has "
            f"{len(source.train)}"
        )
    chosen = train_test_split(range(len(source.train)), test_size=TEST_SHARE, random_state=SPLIT_SEED)
    train, test = (source.train.select(sorted(indices)) for indices in chosen)
    return train, test


def _classes(pool: Pool) -> Tensor:
    classes = classes_of(pool.labels)
    assert classes is not None  # for the type checker: train and test have one kind of labels
    return classes


def number_of_classes(labels: Tensor) -> int:
    """Return the number of different classes in labels; 1 if they hold no classes."""
    classes = classes_of(labels)
    return 1 if classes is None else len(classes.unique())


def subset_of(pool: Pool, most: int | None, name: str, seed: int, *, first: bool) -> Pool:
    """Return at most ``most`` images: the first ones if ``first`` and they cover all classes, else a stratified subset.

    Without classes it is a plain subset.

    Raises:
        ValueError: If there are more classes than ``most``; the error names the argument.
    """
    if most is None or most >= len(pool):
        return pool
    number = number_of_classes(pool.labels)
    if most < number:
        raise ValueError(f"Expected argument `{name}` to be at least the number of classes, {number}, but got {most}")
    if first and number_of_classes(pool.labels[:most]) == number:
        return pool.select(range(most))
    return pool.select(subset_indices(pool.labels, most, seed))


def subset_indices(labels: Tensor, count: int, seed: int) -> list[int]:
    """Draw ``count`` indices, stratified by class if the labels hold classes, in ascending order."""
    classes = classes_of(labels)
    if classes is not None:
        return stratified_subset(classes, count, seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return sorted(order[:count].tolist())


def stratified_subset(labels: Tensor, count: int, seed: int) -> list[int]:
    """Draw ``count`` indices, each class in proportion and at least once, in ascending order.

    Args:
        labels: Class labels, int64 ``(n,)``.
        count: The number of indices, between the number of classes and n.
        seed: The seed of the draw.

    Examples:
        >>> len(stratified_subset(torch.tensor([0] * 90 + [1] * 10), 20, seed=0))
        20
    """
    counts = labels.bincount()
    values = counts.nonzero().flatten()
    quota = stratified_quotas(counts[values].numpy(), count, at_least=1)
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    for value, take in zip(values, quota.tolist(), strict=True):
        members = (labels == value).nonzero().squeeze(1)
        chosen += members[torch.randperm(len(members), generator=generator)[:take]].tolist()
    return sorted(chosen)


HELD_OUT_SEED = 1  # every run holds out the same images, so that runs with different seeds can be compared


@dataclass(frozen=True)
class TrainingSplit:
    """A split of the training images into images to train on and held-out images, as indices.

    Attributes:
        train: The indices of the images to train on, int64, ascending.
        held_out: The indices of the held-out images; may be empty.
        labels: The labels of ``train``, with label noise.
        true_labels: The labels of ``train``, without noise.
        held_out_labels: The labels of ``held_out``, without noise.
    """

    train: Tensor
    held_out: Tensor
    labels: Tensor
    true_labels: Tensor
    held_out_labels: Tensor

    @property
    def wrong(self) -> int:
        """The number of wrong labels."""
        return int((self.labels != self.true_labels).sum())

    @property
    def levels(self) -> int:
        """The number of levels of a hierarchy; 1 for classes."""
        return self.labels.shape[1] if self.labels.ndim == 2 else 1

    def training_images(self, data: ImageData) -> MemoryImages | LazyImages:
        """Return the images to train on, with noisy labels."""
        if not len(self.held_out) and not self.wrong:
            return data.train
        return data.train.select(self.train, self.labels)

    def held_out_images(self, data: ImageData) -> MemoryImages | LazyImages:
        """Return the held-out images, with true labels."""
        return data.train.select(self.held_out, self.held_out_labels)


def split_training_set(labels: Tensor, *, held_out: float, label_noise: float, seed: int) -> TrainingSplit:
    """Hold out a fraction of every class, and give a fraction of the other images a wrong label.

    Without classes a plain fraction is held out.

    Args:
        labels: The labels of all training images.
        held_out: The fraction to hold out, in [0, 1).
        label_noise: The fraction of the other images that get another class, drawn uniformly, in [0, 1]; above 0 for
            classes only.
        seed: The seed of the noise.

    Raises:
        ValueError: If a class would have no image on one side, or if label noise is requested with one class.
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
    number, found = round(share * len(labels)), classes_of(labels)
    if found is None:
        if not 0 < number < len(labels):
            raise ValueError(
                f"Expected --held_out to leave an image on both sides, but {share} of {len(labels)} are {number}"
            )
        return torch.tensor(subset_indices(labels, number, HELD_OUT_SEED))
    counts = found.bincount()
    classes = int((counts > 0).sum())
    if number < classes or int(counts[counts > 0].min()) < 2:
        raise ValueError(
            f"Expected --held_out to leave an image of each of {classes} classes on both sides, but {share} of "
            f"{len(labels)} are {number} and the rarest class has {int(counts[counts > 0].min())}"
        )
    apart = torch.tensor(stratified_subset(found, number, HELD_OUT_SEED))
    left = counts - found[apart].bincount(minlength=len(counts))
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
    """Return the data set with some of its classes, renumbered from 0 in their order.

    Args:
        source: The data set.
        wanted: Class names, numbers or ranges, joined by commas: ``cat,dog``, ``0-4``, ``0,2,7-9``. Names take
            precedence over positions; if all names are numbers, numbers and ranges are names.
        spec: The specification, for errors.

    Raises:
        ValueError: If a class does not exist, or fewer than two are left.
    """
    kept = sorted({label for part in wanted.split(",") for label in _labels_of(part, source.class_names, spec)})
    if len(kept) < 2:
        raise ValueError(f"Expected at least 2 classes after `classes=`, but got {spec!r}")
    return replace(
        source,
        train=_only(source.train, kept),
        test=None if source.test is None else _only(source.test, kept),
        class_names=tuple(source.class_names[label] for label in kept),
        left_out=(f"classes not selected ({len(source.class_names) - len(kept)})", *source.left_out),
    )


def _labels_of(part: str, names: tuple[str, ...], spec: str) -> list[int]:
    if part in names:
        return [names.index(part)]
    numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        named = [label for label, name in enumerate(names) if name.isdecimal() and first <= int(name) <= last]
        if all(name.isdecimal() for name in names):  # numbers are names then: 1-3 is not 10, 11, 12
            if len(named) == last - first + 1:
                return named
        elif named:
            raise ValueError(
                f"Expected `classes=` to be unambiguous, but {part!r} in {spec!r} may be names or positions: name each"
            )
        elif first <= last < len(names):
            return list(range(first, last + 1))
    raise ValueError(
        f"Expected names of classes or numbers from 0 to {len(names) - 1} after `classes=`, such as `0-4` or "
        f"`{names[0]},{names[-1]}`, but got {part!r} in {spec!r}"
    )


def _only(pool: Pool, kept: list[int]) -> Pool:
    wanted = torch.tensor(kept)
    chosen = pool.select(torch.isin(pool.labels, wanted).nonzero()[:, 0].tolist())
    return Pool(chosen.images, torch.searchsorted(wanted, chosen.labels))
