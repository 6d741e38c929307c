"""Images with labels: pools that decode when read, and data sets in memory or lazy."""

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

from pml_supcon.data.label_kinds import LabelsAre, label_at

GREY_MODES = frozenset({"1", "L", "LA"})
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
_TURNED = (5, 6, 7, 8)  # the EXIF orientations with width and height exchanged
_LONGEST = 100  # maximum ratio of the longer side to the shorter one
_NAMED = 5  # maximum number of broken images named in an error


class BrokenImageError(ValueError):
    """An error for an image that cannot be read, or not as one of its data set; the message names it."""


class Images(Protocol):
    """A sequence of images, with a name for each in error messages."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> Image.Image | Tensor:
        """Return a PIL image, not necessarily decoded, or a uint8 tensor (C, H, W)."""

    def where(self, index: int) -> str:
        """Name the image for an error message: its path, or its row."""

    def fingerprint(self) -> str:
        """Return a digest that changes when the images do, without decoding them."""


@dataclass(frozen=True)
class Pool:
    """Images and their labels, a tensor with one entry for each image (see ``ImageData``), which needs no decoding."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Sequence[int]) -> "Pool":
        """Return the pool of these images, in this order."""
        return Pool(_Selected(self.images, list(indices)), self.labels[torch.as_tensor(indices, dtype=torch.long)])


@dataclass(frozen=True)
class Source:
    """The splits of a data set, before decoding.

    Attributes:
        train: The training images.
        test: The test images, or None if the data set has no test split.
        class_names: The name of each label 0..C-1; see ``ImageData``.
        symbols: True for digits or letters, which must not be mirrored.
        shuffled: True if the rows are in random order, so that the first n rows are a fair subset.
        parts: The places of the training images and of the test images, for the summary; None where there is one place.
        left_out: Descriptions of the files, folders or splits that were not read.
        labels_are: The kind of the labels; see ``ImageData``.
    """

    train: Pool
    test: Pool | None
    class_names: tuple[str, ...]
    symbols: bool = False
    shuffled: bool = False
    parts: tuple[str | None, str | None] = (None, None)
    left_out: tuple[str, ...] = ()
    labels_are: LabelsAre = "classes"


@dataclass(frozen=True)
class _Selected:
    images: Images
    indices: list[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Image.Image | Tensor:
        return self.images[self.indices[index]]

    def where(self, index: int) -> str:
        return self.images.where(self.indices[index])

    def fingerprint(self) -> str:
        return digest_of(self.images.fingerprint(), *map(str, self.indices))


def printable(name: str | os.PathLike[str]) -> str:
    r"""Return a file name as text: bytes that are not UTF-8, and line ends, become escapes.

    Examples:
        >>> printable(os.fsdecode(b"caf\xe9"))
        'caf\\xe9'
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def digest_of(*parts: str) -> str:
    """Return a digest of strings in their order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)} {part}".encode())
    return digest.hexdigest()


def stamps(paths: Iterable[str]) -> Iterator[str]:
    """Yield the path, size and time of the last change of each file."""
    for path in paths:
        state = os.stat(path)
        yield f"{path} {state.st_size} {state.st_mtime_ns}"


def evenly(count: int, most: int) -> list[int]:
    """Return at most ``most`` indices spread evenly over ``range(count)``.

    Examples:
        >>> evenly(10, 3)
        [0, 3, 6]
    """
    return [index * count // min(count, most) for index in range(min(count, most))]


def shape_of(images: Images, index: int) -> tuple[bool, tuple[int, int]]:
    """Return True for a grey image, and its (height, width), from its header alone.

    Raises:
        BrokenImageError: If the header cannot be read, or the pixels have more than 8 bits.
    """
    image = _open(images, index)
    if isinstance(image, Tensor):
        return image.shape[0] == 1, (image.shape[1], image.shape[2])
    # PIL turns a TIFF itself; a PNG would be decoded here, for an orientation behind its pixels.
    skipped = image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info)
    try:
        exif = {} if skipped else image.getexif()
    except Exception as error:  # see `read_image`
        raise BrokenImageError(f"{images.where(index)} has EXIF data that cannot be read: {error}") from error
    turned = exif.get(ExifTags.Base.Orientation) in _TURNED
    return image.mode in GREY_MODES, (image.width, image.height) if turned else (image.height, image.width)


def read_image(images: Images, index: int, in_chans: int) -> Image.Image | Tensor:
    """Return one decoded image: a PIL image of mode "L" or "RGB", or a tensor if the source holds tensors.

    The image is rotated according to its EXIF orientation. Transparent pixels are blended with white.

    Raises:
        BrokenImageError: If the image cannot be decoded, ``decode_image`` refuses it, or it is in colour and
            ``in_chans`` is 1. The error names the image.
    """
    image = _open(images, index)
    if isinstance(image, Tensor):
        return image
    if in_chans == 1 and image.mode not in GREY_MODES:
        raise BrokenImageError(
            f"Expected grey images, as the others are, but {images.where(index)} has mode {image.mode!r}"
        )
    try:
        return decode_image(image, "L" if in_chans == 1 else "RGB")
    except Exception as error:  # PIL raises many kinds, down to struct.error
        raise BrokenImageError(f"{images.where(index)} is not a readable image: {error}") from error


def decode_image(image: Image.Image, mode: str) -> Image.Image:
    """Return an opened image as training and evaluation read it.

    It is rotated according to its EXIF orientation, and transparent pixels are blended with white.

    Args:
        image: As ``PIL.Image.open`` returns it.
        mode: "L" or "RGB".

    Raises:
        ValueError: If the image has more than 8 bits per channel, several frames, or sides of a ratio above 100.
    """
    if fault := _unsupported(image):
        raise ValueError(f"Expected an image {fault}")
    image = ImageOps.exif_transpose(image)
    if not image.has_transparency_data:
        return image.convert(mode)
    pixels = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert(mode)


def as_tensor(image: Image.Image | Tensor) -> Tensor:
    """Return a decoded image as uint8 (C, H, W)."""
    return image if isinstance(image, Tensor) else pil_to_tensor(image)


def for_each(
    images: Images, indices: Iterable[int], in_chans: int, visit: Callable[[int, Tensor], None], title: str
) -> None:
    """Decode images in a pool of threads, with a progress bar, and call ``visit(index, pixels)`` for each.

    Raises:
        BrokenImageError: If images cannot be decoded; all are tried first, and the error names the broken ones.
    """
    raise_broken(list(find_broken(images, indices, in_chans, visit, title).values()))


def find_broken(
    images: Images, indices: Iterable[int], in_chans: int, visit: Callable[[int, Tensor], object], title: str
) -> dict[int, str]:
    """Decode images as ``for_each`` does; return the error of each broken one, in the order of ``indices``."""

    def work(index: int) -> str | None:
        try:
            visit(index, as_tensor(read_image(images, index, in_chans)))
        except BrokenImageError as error:
            return " ".join(str(error).split())
        return None

    indices = list(indices)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        results = tqdm(threads.map(work, indices), total=len(indices), desc=title, disable=None, leave=False)
        return {index: message for index, message in zip(indices, results, strict=True) if message is not None}


def raise_broken(messages: Sequence[str]) -> None:
    """Raise BrokenImageError with the first of the messages and the number of the others, if there are any."""
    if messages:
        more = f"\nand {len(messages) - _NAMED} more" if len(messages) > _NAMED else ""
        raise BrokenImageError("\n".join(messages[:_NAMED]) + more)


class Moments:
    """The mean and standard deviation of each channel, averaged over images; values are scaled to [0, 1]."""

    def __init__(self, in_chans: int) -> None:
        self._in_chans = in_chans
        self._first: dict[int, Tensor] = {}
        self._second: dict[int, Tensor] = {}

    def add(self, index: int, pixels: Tensor) -> None:
        """Add image ``index``, uint8 ``(C, H, W)``. Thread-safe."""
        values = pixels.double().flatten(1) / 255
        self._first[index], self._second[index] = values.mean(1), values.square().mean(1)

    def result(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return (mean, std), one entry per channel; a constant channel has std 1.

        Raises:
            ValueError: If all channels are constant.
        """
        order = sorted(self._first)  # threads finish in any order; the sum must not depend on it
        mean = torch.stack([self._first[index] for index in order]).mean(0)
        square = torch.stack([self._second[index] for index in order]).mean(0)
        variance = (square - mean.square()).tolist()
        if max(variance) < 1e-10:
            raise ValueError("Expected images that differ, but all pixels of the train images have the same value")
        return tuple(mean.tolist()), tuple(math.sqrt(value) if value >= 1e-10 else 1.0 for value in variance)


def _open(images: Images, index: int) -> Image.Image | Tensor:
    try:
        image = images[index]
    except Exception as error:  # see `read_image`
        raise BrokenImageError(f"{images.where(index)} is not a readable image: {error}") from error
    if not isinstance(image, Tensor) and (fault := _unsupported(image)):
        raise BrokenImageError(f"Expected images {fault}: {images.where(index)}")
    return image


def _unsupported(image: Image.Image) -> str | None:
    """Return the expectation that an image does not meet, from its header alone, or None."""
    if image.mode not in GREY_MODES | _COLOUR_MODES or _has_16_bits(image):
        return (
            f"of 8 bits per channel, but got more (mode {image.mode!r}); convert it first, clipping would lose detail"
        )
    if max(image.size) > _LONGEST * min(image.size):
        return (
            f"at most {_LONGEST} times as long as wide, but got {image.width} x {image.height} pixels; scaled to the "
            "size of the others it would fill the memory"
        )
    # MPO holds several views of one photograph, not an animation
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return "of one frame, but got several; save the one to read"
    return None


def _has_16_bits(image: Image.Image) -> bool:
    """Return True if PIL cuts 16-bit channels of this file to 8 bits, by the raw mode of its data (PNG, TIFF, PPM)."""
    for tile in getattr(image, "tile", ()):
        raw, *more = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if re.fullmatch("(L|LA|RGB|RGBA|RGBX|CMYK);16.*", str(raw)):
            return True
        if tile.codec_name.startswith("ppm") and more[0] > 255:
            return True
    return False


class MemoryImages(Dataset[tuple[Tensor, int | Tensor]]):
    """A data set in memory: uint8 ``images`` ``(n, C, H, W)`` and ``labels`` ``(n, ...)``; items are pairs."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        return self.images[index], label_at(self.labels, index)

    def fingerprint(self) -> str:
        """Return a digest of all pixels."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        return digest.hexdigest()

    def select(self, indices: Tensor, labels: Tensor) -> "MemoryImages":
        """Return the images at these indices, with these labels."""
        return MemoryImages(self.images[indices], labels)


class LazyImages(Dataset[tuple[Image.Image | Tensor, int | Tensor]]):
    """A data set of pairs (PIL image of mode "L" or "RGB", label), decoded when read; ``labels`` are ``(n, ...)``."""

    def __init__(self, images: Images, labels: Tensor, in_chans: int) -> None:
        self.labels = labels
        self._images, self._in_chans = images, in_chans

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image | Tensor, int | Tensor]:
        return read_image(self._images, index, self._in_chans), label_at(self.labels, index)

    def fingerprint(self) -> str:
        """Return a digest that changes with the files or with the order of the images."""
        return f"{self._images.fingerprint()} {self._in_chans}"

    def select(self, indices: Tensor, labels: Tensor) -> "LazyImages":
        """Return the images at these indices, with these labels."""
        return LazyImages(Pool(self._images, self.labels).select(indices.tolist()).images, labels, self._in_chans)


@dataclass(frozen=True)
class ImageData:
    """A data set ready for training and evaluation.

    Attributes:
        train: Map-style pairs (image, label). The image is a uint8 tensor ``(C, H, W)``, or a PIL image decoded when
            read if the data set is large or has images of several sizes.
        test: The same for the test images.
        class_names: The name of each class 0..C-1, of each column of sets and soft labels, or of each class of the
            finest level of a hierarchy; none for numbers.
        in_chans: 1 if every image is grey, else 3.
        image_size: The side of the square that transforms return.
        mean: The channel means of the training images, in [0, 1].
        std: The channel standard deviations of the training images, > 0.
        spec: The specification given to ``load_data``.
        family: The kind of augmentation: "digits" (small grey images or symbols, never mirrored) or "natural".
        labels_are: The kind of the labels: "classes", int64 ``(n,)``; "sets", bool ``(n, C)``; "soft", shares of
            classes, float32 ``(n, C)``; "hierarchy", int64 ``(n, L)`` from the coarsest level to the finest, with one
            label above each; "numbers", float32 ``(n,)`` or ``(n, K)``.
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
    labels_are: LabelsAre = "classes"

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return len(self.class_names)

    @property
    def train_labels(self) -> Tensor:
        """The labels of the training images."""
        return self.train.labels

    @property
    def test_labels(self) -> Tensor:
        """The labels of the test images."""
        return self.test.labels
