"""`load_data`: images and labels, ready for the recipe, from a one-line specification."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset

from pml_supcon.recipes.image_pool import (
    Images,
    Moments,
    Pool,
    Source,
    evenly,
    for_each,
    raise_broken,
    read_image,
    shape_of,
)
from pml_supcon.recipes.image_sources import open_source

SPLIT_SEED = 0  # of the 70/30 split: the same test images in every run, whatever the run's seed
TEST_SHARE = 0.3
SMALL_IMAGE = 64  # up to here images keep their own size
LARGE_IMAGE = 224
MEMORY_LIMIT = 512 * 2**20  # bytes of decoded images
CHECK_LIMIT = 20_000  # up to so many images are all decoded before the run
NewClasses = Literal["none", "all", "some"]  # that test may have and train lacks
STATISTICS_LIMIT = 2_000  # images from which mean and deviation are taken


class MemoryImages(Dataset[tuple[Tensor, int]]):
    """Pairs (uint8 image (C, H, W), label) from tensors in memory: `images` (n, C, H, W), `labels` int64 (n,)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def fingerprint(self) -> str:
        """What changes when a pixel does."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        return digest.hexdigest()

    def select(self, indices: Tensor, labels: Tensor) -> "MemoryImages":
        """These images, with these labels."""
        return MemoryImages(self.images[indices], labels)


class LazyImages(Dataset[tuple[Image.Image | Tensor, int]]):
    """Pairs (PIL image of mode "L" or "RGB", label), decoded when read; `labels` int64 (n,)."""

    def __init__(self, images: Images, labels: Tensor, in_chans: int) -> None:
        self.labels = labels
        self._images, self._in_chans = images, in_chans

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image | Tensor, int]:
        return read_image(self._images, index, self._in_chans), int(self.labels[index])

    def fingerprint(self) -> str:
        """What changes when a file does, or the order of the images."""
        return f"{self._images.fingerprint()} {self._in_chans}"

    def select(self, indices: Tensor, labels: Tensor) -> "LazyImages":
        """These images, with these labels."""
        return LazyImages(Pool(self._images, self.labels).select(indices.tolist()).images, labels, self._in_chans)


@dataclass(frozen=True)
class ImageData:
    """A data set as the recipe uses it.

    Attributes:
        train: map-style pairs (image, label). The image is a uint8 tensor (C, H, W), or, where the set is too large or
            of several sizes, a PIL image decoded when read.
        test: the same for the test images.
        class_names: the name of each label 0..C-1.
        in_chans: 1 where every image is grey, else 3.
        image_size: the side of the square that transforms should make.
        mean: channel means of train images, in [0, 1].
        std: channel deviations of train images, > 0.
        spec: what `load_data` was given.
        family: which augmentation fits: "digits" (small grey or known symbols, never mirrored) or "natural".
    """

    train: MemoryImages | LazyImages
    test: MemoryImages | LazyImages
    class_names: tuple[str, ...]
    in_chans: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    spec: str
    family: Literal["digits", "natural"]

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return len(self.class_names)

    @property
    def train_labels(self) -> Tensor:
        """The labels of train, int64, known without decoding."""
        return self.train.labels

    @property
    def test_labels(self) -> Tensor:
        """The labels of test, int64, known without decoding."""
        return self.test.labels


def load_data(
    spec: str,
    *,
    image_size: int | None = None,
    max_train: int | None = None,
    max_test: int | None = None,
    seed: int = 0,
) -> ImageData:
    """Open a data set.

    `spec` is one of

    - `digits`: scikit-learn's 1,797 handwritten digits of 8 x 8, without a download;
    - `torchvision:NAME`: a class of torchvision.datasets in the folder $PML_SUPCON_DATA, else `data`, downloaded there
      where missing. `?ARGUMENT=VALUE` adds an argument (`torchvision:EMNIST?split=letters`);
    - `imagefolder:PATH`: PATH/train/CLASS/* and PATH/test (or val, or valid), or PATH/CLASS/*;
    - `hf:PATH_OR_ID`: a folder of Parquet files (or another that `datasets` reads) or an id of the hub, with the splits
      train and test (or validation). `?label=COLUMN&image=COLUMN` chooses columns, `?name=...` a configuration.

    Each takes `?classes=0-4` too (names, numbers or ranges, joined by commas): these classes alone.

    A set without a test part is split 70/30, the same way in every run, with every class in its share. Images that
    all have one size and fit into 512 MiB are decoded once and kept as a uint8 tensor of their own size; others are
    decoded when read. Up to 20,000 images are all decoded before the run, so that a broken one shows now.

    Args:
        spec: see above.
        image_size: side of the square that transforms should make. None: the images' own, where all are square, equal
            and at most 64, else 224.
        max_train: use at most so many train images, >= the number of classes. Of `hf:` sets the first ones, where
            these have all classes; otherwise a subset with every class in its share, drawn with `seed`.
        max_test: the same for the test images.
        seed: of the subsets.

    Returns:
        The data.

    Raises:
        ValueError: for an unknown set or form, a missing or ambiguous column, a class without images, test classes
            that train does not have, too few images to split or for `max_train`, images that cannot be read.
        FileNotFoundError: where the folder does not exist.

    Examples:
        >>> data = load_data("digits")
        >>> len(data.train), len(data.test), data.train[0][0].shape, data.num_classes, data.family
        (1257, 540, torch.Size([1, 8, 8]), 10, 'digits')
    """
    return open_data(spec, image_size=image_size, max_train=max_train, max_test=max_test, seed=seed).decode()


@dataclass(frozen=True)
class OpenedData:
    """A data set whose labels are known and whose images are not decoded yet."""

    spec: str
    source: Source
    train: Pool
    test: Pool
    image_size: int | None

    @property
    def train_labels(self) -> Tensor:
        """The labels of train, int64."""
        return self.train.labels

    def with_train_fraction(self, fraction: float, seed: int) -> "OpenedData":
        """The same with a share of the training images, every class in its share and with one image at least."""
        most = round(fraction * len(self.train))
        classes = len(self.train_labels.bincount().nonzero())
        if most < classes:
            raise ValueError(
                f"Expected --train_fraction to leave an image of each of {classes} classes, but {fraction} of "
                f"{len(self.train)} are {most}"
            )
        return replace(self, train=_subset(self.train, most, "train_fraction", seed, first=False))

    def decode(self) -> ImageData:
        """Look at the images; see `load_data`."""
        return _assemble(self.spec, self.source, self.train, self.test, self.image_size)


def open_data(
    spec: str,
    *,
    image_size: int | None = None,
    max_train: int | None = None,
    max_test: int | None = None,
    seed: int = 0,
    new_classes: NewClasses = "none",
) -> OpenedData:
    """The first half of `load_data`, quick on large sets: what is wrong with labels or arguments shows here.

    `new_classes` says whether test may have classes that train lacks: "none"; "all" or none of them, since retrieval
    among new classes is what metric learning is for; or "some".
    """
    for name, value in (("image_size", image_size), ("max_train", max_train), ("max_test", max_test)):
        if value is not None and value < 1:
            raise ValueError(f"Expected argument `{name}` to be at least 1, but got {value}")
    source = open_source(spec)
    train, test = _split(source, spec, new_classes=new_classes)
    train = _subset(train, max_train, "max_train", seed, first=source.shuffled)
    test = _subset(test, max_test, "max_test", seed, first=source.shuffled)
    return OpenedData(spec, source, train, test, image_size)


def _assemble(spec: str, source: Source, train: Pool, test: Pool, image_size: int | None) -> ImageData:
    """Look at the images, decide what to keep in memory, and decode."""
    grey, sizes = _survey([train, test])
    in_chans = 1 if grey else 3
    size = next(iter(sizes)) if len(sizes) == 1 else None
    moments = Moments(in_chans)
    in_memory = size is not None and (len(train) + len(test)) * in_chans * math.prod(size) <= MEMORY_LIMIT
    pixels = [torch.empty(len(pool), in_chans, *(size or ()), dtype=torch.uint8) for pool in (train, test) if in_memory]
    odd = _decode(train, pixels[0] if pixels else None, in_chans, "train", moments)
    odd += _decode(test, pixels[1] if pixels else None, in_chans, "test", None)
    if odd:  # beyond the surveyed images there are other sizes
        pixels, size = [], None
    splits: list[MemoryImages | LazyImages] = [
        MemoryImages(pixels[index], pool.labels) if pixels else LazyImages(pool.images, pool.labels, in_chans)
        for index, pool in enumerate((train, test))
    ]
    if image_size is None:
        keep = size is not None and size[0] == size[1] <= SMALL_IMAGE
        image_size = size[0] if size is not None and keep else LARGE_IMAGE
    mean, std = moments.result()
    symbols = source.symbols or (in_chans == 1 and image_size <= SMALL_IMAGE)
    return ImageData(
        train=splits[0],
        test=splits[1],
        class_names=source.class_names,
        in_chans=in_chans,
        image_size=image_size,
        mean=mean,
        std=std,
        spec=spec,
        family="digits" if symbols else "natural",
    )


def _split(source: Source, spec: str, *, new_classes: NewClasses) -> tuple[Pool, Pool]:
    """Return train and test, splitting train where there is no test part."""
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


def _subset(pool: Pool, most: int | None, name: str, seed: int, *, first: bool) -> Pool:
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


def _survey(pools: Sequence[Pool]) -> tuple[bool, set[tuple[int, int]]]:
    """Return whether all images are grey, and their sizes, from the headers of all (of many: some) images."""
    most = CHECK_LIMIT if sum(map(len, pools)) <= CHECK_LIMIT else STATISTICS_LIMIT
    shapes, broken = set(), []
    for images, index in ((pool.images, index) for pool in pools for index in evenly(len(pool), most)):
        try:
            shapes.add(shape_of(images, index))
        except ValueError as error:
            broken.append(str(error))
    raise_broken(broken)
    return all(grey for grey, _ in shapes), {size for _, size in shapes}


def _decode(pool: Pool, into: Tensor | None, in_chans: int, title: str, moments: Moments | None) -> int:
    """Decode all images once, or only some where there are many and none is kept, so that broken ones show.

    Returns:
        The number of images that do not fit into `into`.
    """
    sample = set(evenly(len(pool), STATISTICS_LIMIT))
    odd: list[int] = []

    def visit(index: int, pixels: Tensor) -> None:
        if moments is not None and index in sample:
            moments.add(index, pixels)
        if into is not None and pixels.shape == into.shape[1:]:
            into[index] = pixels
        elif into is not None:
            odd.append(index)

    everything = into is not None or len(pool) <= CHECK_LIMIT
    for_each(pool.images, range(len(pool)) if everything else sorted(sample), in_chans, visit, f"decoding {title}")
    return len(odd)
