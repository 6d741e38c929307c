"""A data set as the recipe uses it: images with labels, in memory or decoded when read."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pml_supcon.data.pool import Images, Pool, read_image


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
