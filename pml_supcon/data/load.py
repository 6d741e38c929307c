"""`load_data`: images and labels, ready for the recipe, from a one-line specification."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pml_supcon.data.images import (
    ImageData,
    LazyImages,
    MemoryImages,
    Moments,
    Pool,
    Source,
    evenly,
    for_each,
    raise_broken,
    shape_of,
)
from pml_supcon.data.sources import open_source
from pml_supcon.data.splits import NewClasses, split_source, subset_of

SMALL_IMAGE = 64  # up to here images keep their own size
LARGE_IMAGE = 224
MEMORY_LIMIT = 512 * 2**20  # bytes of decoded images
CHECK_LIMIT = 20_000  # up to so many images are all decoded before the run
STATISTICS_LIMIT = 2_000  # images from which mean and deviation are taken


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
        return replace(self, train=subset_of(self.train, most, "train_fraction", seed, first=False))

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
    train, test = split_source(source, spec, new_classes=new_classes)
    train = subset_of(train, max_train, "max_train", seed, first=source.shuffled)
    test = subset_of(test, max_test, "max_test", seed, first=source.shuffled)
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
