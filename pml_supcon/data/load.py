"""``load_data``: open a data set from a one-line specification."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pml_supcon.data.images import (
    BrokenImageError,
    ImageData,
    LazyImages,
    MemoryImages,
    Moments,
    Pool,
    Source,
    evenly,
    find_broken,
    for_each,
    printable,
    raise_broken,
    shape_of,
)
from pml_supcon.data.label_kinds import WITH_CLASSES, LabelsAre, classes_of, describe_labels, has_new_classes
from pml_supcon.data.sources import open_source
from pml_supcon.data.splits import NewClasses, number_of_classes, split_source, subset_of

SMALL_IMAGE = 64  # grey images up to this side are taken for symbols
LARGE_IMAGE = 224  # images are not enlarged beyond their own size, nor kept larger than this
MEMORY_LIMIT = 512 * 2**20  # bytes of decoded images
CHECK_LIMIT = 20_000  # data sets up to this size are decoded completely before the run
STATISTICS_LIMIT = 2_000  # images for the mean and standard deviation


def load_data(
    spec: str,
    *,
    labels_are: LabelsAre = "classes",
    image_size: int | None = None,
    max_train: int | None = None,
    max_test: int | None = None,
    seed: int = 0,
) -> ImageData:
    """Open a data set.

    ``spec`` is one of

    - ``digits``: scikit-learn's 1,797 handwritten digits of 8 x 8, without a download;
    - ``torchvision:NAME``: a class of torchvision.datasets, downloaded if missing into the folder $PML_SUPCON_DATA, by
      default ``data``. ``?ARGUMENT=VALUE`` adds an argument (``torchvision:EMNIST?split=letters``);
    - ``imagefolder:PATH``: PATH/train/CLASS/* and PATH/test/CLASS/* (training; testing, val, valid, validation, in any
      case), or PATH/CLASS/*. ``?depth=2`` takes PATH/GROUP/CLASS/*;
    - ``hf:PATH_OR_ID``: a folder of Parquet files (or another that ``datasets`` reads) or an id of the hub, with the
      splits train and test (or validation, also if the labels of test are hidden). ``?label=COLUMN&image=COLUMN``
      selects columns, ``?train=SPLIT&test=SPLIT`` splits, ``?name=...`` a configuration.

    Each accepts ``?classes=0-4`` (names, numbers or ranges, joined by commas) to select classes.

    Labels other than classes are in columns of ``hf:`` data, also in a ``metadata.csv`` or ``metadata.jsonl`` with a
    column ``file_name`` in a folder of images, or, for a hierarchy, in the folders of ``imagefolder:``:

    - "sets": a column of lists, of names or of zeros and ones, or several columns ``?label=a,b,c`` of zeros and ones;
    - "soft": a column of lists of shares, or several columns of numbers;
    - "hierarchy": several columns, coarse to fine (``?label=coarse_label,fine_label``), or ``imagefolder:`` with
      ``?depth=2``: the levels are GROUP and CLASS of PATH/GROUP/CLASS/*;
    - "numbers": one column of numbers, or several. They are not standardised.

    A data set without a test split is split 70/30, stratified by class where there are classes, identically in every
    run. Images of one size that fit into 512 MiB are decoded once into a uint8 tensor; others are decoded when read.
    Data sets of up to 20,000 images are decoded completely before the run, so that a broken image raises an error
    early.

    Args:
        spec: The specification, see above.
        labels_are: The kind of the labels; see ``ImageData``.
        image_size: The side of the square that transforms return. Default: the largest shorter side of the images, at
            most 224.
        max_train: The maximum number of training images, >= the number of classes. ``hf:`` data sets keep the first
            rows if these cover all classes; all others a stratified subset, drawn with ``seed``; without classes,
            a plain subset.
        max_test: The same for the test images.
        seed: The seed of the subsets.

    Returns:
        The data set.

    Raises:
        ValueError: If the specification is unknown, a column is missing or ambiguous, a class has no images, test has
            classes that train lacks, there are too few images, or an image cannot be read.
        FileNotFoundError: If the folder does not exist.

    Examples:
        >>> data = load_data("digits")
        >>> len(data.train), len(data.test), data.train[0][0].shape, data.num_classes, data.family
        (1257, 540, torch.Size([1, 8, 8]), 10, 'digits')
    """
    opened = open_data(
        spec, labels_are=labels_are, image_size=image_size, max_train=max_train, max_test=max_test, seed=seed
    )
    return opened.decode()


@dataclass(frozen=True)
class OpenedData:
    """A data set with its labels, before its images are decoded."""

    spec: str
    source: Source
    train: Pool
    test: Pool
    image_size: int | None
    before: tuple[Pool, Pool]  # train and test before a subset was drawn
    replaced: int = 0  # the number of broken images that others replace

    def summary(self) -> list[str]:
        """Describe the data in three lines: labels with counts, parts, and everything that was left out."""
        source = self.source
        labels = describe_labels(self.train.labels, source.labels_are, [printable(name) for name in source.class_names])
        train, test = (f" of {place}" if place else "" for place in source.parts)
        if source.test is None:
            test = ", 30 % of each class" if source.labels_are in WITH_CLASSES else ", 30 % of the images"
        if has_new_classes(self.train.labels, self.test.labels):
            test += ", all of classes that train lacks"
        left_out = list(source.left_out)
        for title, before, after in zip(("training", "test"), self.before, (self.train, self.test), strict=True):
            if len(after) < len(before):
                left_out.append(f"{title} images beyond the subset ({len(before) - len(after)})")
        return [
            f"data {printable(self.spec)}: {labels}",
            f"train: {len(self.train)} images{train}; test: {len(self.test)} images{test}",
            f"left out: {', '.join(left_out) or 'nothing'}",
        ]

    def with_train_fraction(self, fraction: float, seed: int) -> "OpenedData":
        """Return the data set with a fraction of the training images, stratified, at least one of each class."""
        most = round(fraction * len(self.train))
        classes = number_of_classes(self.train.labels)
        if most < classes:
            raise ValueError(
                f"Expected --train_fraction to leave an image of each of {classes} classes, but {fraction} of "
                f"{len(self.train)} are {most}"
            )
        return replace(self, train=subset_of(self.train, most, "train_fraction", seed, first=False))

    def at_finest_level(self) -> "OpenedData":
        """Return the data set with the finest level of a hierarchy as its classes; any other as it is."""
        if self.source.labels_are != "hierarchy":
            return self
        train, test = (replace(pool, labels=pool.labels[:, -1]) for pool in (self.train, self.test))
        return replace(self, source=replace(self.source, labels_are="classes"), train=train, test=test)

    def find_broken(self) -> tuple[dict[int, str], dict[int, str]]:
        """Decode every image once; return the errors of the broken ones of train and of test, by their indices."""
        shapes, _ = _shapes([self.train, self.test])
        in_chans = 1 if all(grey for grey, _ in shapes) else 3
        train, test = (
            find_broken(pool.images, range(len(pool)), in_chans, lambda index, pixels: None, f"checking {title}")
            for pool, title in ((self.train, "train"), (self.test, "test"))
        )
        return train, test

    def with_replaced(self, broken: tuple[Collection[int], Collection[int]]) -> "OpenedData":
        """Return the data set with the next image of the class in place of each of these of train and test.

        Raises:
            ValueError: If no image of a class is left.
        """
        names = self.source.class_names
        pools = [_with_replaced(pool, gone, names) for pool, gone in zip((self.train, self.test), broken, strict=True)]
        return replace(self, train=pools[0], test=pools[1], replaced=sum(map(len, broken)))

    def decode(self) -> ImageData:
        """Decode the images; see ``load_data``."""
        pools = [self.train, self.test]
        grey, sizes = _survey(pools)
        in_chans = 1 if grey else 3
        size = next(iter(sizes)) if len(sizes) == 1 else None
        moments = Moments(in_chans)
        in_memory = size is not None and (len(self.train) + len(self.test)) * in_chans * math.prod(size) <= MEMORY_LIMIT
        pixels = [torch.empty(len(pool), in_chans, *(size or ()), dtype=torch.uint8) for pool in pools if in_memory]
        odd = _decode(self.train, pixels[0] if pixels else None, in_chans, "train", moments)
        odd += _decode(self.test, pixels[1] if pixels else None, in_chans, "test", None)
        if odd:  # beyond the surveyed images there are other sizes
            pixels, size = [], None
        splits: list[MemoryImages | LazyImages] = [
            MemoryImages(pixels[index], pool.labels) if pixels else LazyImages(pool.images, pool.labels, in_chans)
            for index, pool in enumerate(pools)
        ]
        image_size = self.image_size or min(LARGE_IMAGE, max(min(each) for each in sizes))
        mean, std = moments.result()
        symbols = self.source.symbols or (in_chans == 1 and image_size <= SMALL_IMAGE)
        return ImageData(
            train=splits[0],
            test=splits[1],
            class_names=self.source.class_names,
            in_chans=in_chans,
            image_size=image_size,
            mean=mean,
            std=std,
            spec=self.spec,
            family="digits" if symbols else "natural",
            labels_are=self.source.labels_are,
        )


def open_data(
    spec: str,
    *,
    labels_are: LabelsAre = "classes",
    image_size: int | None = None,
    max_train: int | None = None,
    max_test: int | None = None,
    seed: int = 0,
    new_classes: NewClasses = "none",
) -> OpenedData:
    """Read the labels and check the arguments, without decoding images: the quick first half of ``load_data``.

    ``new_classes`` sets the test classes that train may lack: "none"; "all", for zero-shot retrieval, in which no test
    class or every test class is new; or "some".
    """
    for name, value in (("image_size", image_size), ("max_train", max_train), ("max_test", max_test)):
        if value is not None and value < 1:
            raise ValueError(f"Expected argument `{name}` to be at least 1, but got {value}")
    source = open_source(spec, labels_are)
    train, test = split_source(source, spec, new_classes=new_classes)
    before = train, test
    train = subset_of(train, max_train, "max_train", seed, first=source.shuffled)
    test = subset_of(test, max_test, "max_test", seed, first=source.shuffled)
    return OpenedData(spec, source, train, test, image_size, before)


def _survey(pools: Sequence[Pool]) -> tuple[bool, set[tuple[int, int]]]:
    """Return True if all images are grey, and their sizes; of a large data set, read a sample of the headers."""
    shapes, broken = _shapes(pools)
    raise_broken(broken)
    return all(grey for grey, _ in shapes), {size for _, size in shapes}


def _shapes(pools: Sequence[Pool]) -> tuple[set[tuple[bool, tuple[int, int]]], list[str]]:
    """Return the shapes (see ``shape_of``) of all images, of a large data set of a sample, and the errors."""
    most = CHECK_LIMIT if sum(map(len, pools)) <= CHECK_LIMIT else STATISTICS_LIMIT
    shapes, broken = set(), []
    for images, index in ((pool.images, index) for pool in pools for index in evenly(len(pool), most)):
        try:
            shapes.add(shape_of(images, index))
        except BrokenImageError as error:
            broken.append(str(error))
    return shapes, broken


def _with_replaced(pool: Pool, broken: Collection[int], names: Sequence[str]) -> Pool:
    if not broken:
        return pool
    indices, classes = list(range(len(pool))), classes_of(pool.labels)
    assert classes is not None  # `replace_broken` checks this
    for index in broken:
        label = int(classes[index])
        own = (classes == label).nonzero()[:, 0].tolist()
        place = own.index(index)
        found = next((other for other in own[place:] + own[:place] if other not in broken), None)
        if found is None:
            raise ValueError(
                f"Expected a readable image of the class {printable(names[label])}, but all {len(own)} fail"
            )
        indices[index] = found
    return pool.select(indices)


def _decode(pool: Pool, into: Tensor | None, in_chans: int, title: str, moments: Moments | None) -> int:
    """Decode images once, to fill ``into`` and to detect broken ones; only a sample of a large lazy data set.

    Returns:
        The number of images whose shape differs from an image of ``into``.
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
