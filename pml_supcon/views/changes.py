"""Fixed changes of images, which a linear probe predicts: grey, rotated, noisy, Sobel-filtered.

A change maps uint8 images and their indices in a dataset to uint8 images of the same shape. Random draws depend only on
the change's seed and the image's index: they are the same in any batch and in any process.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from pml_supcon._checks import check_choice, check_int, check_number
from pml_supcon._tensors import check_dense

_SOBEL_MAX = math.sqrt(20)  # the largest magnitude of values in [0, 1]: 4 in one direction with 2 in the other


class Change(Protocol):
    """A change of images.

    It takes uint8 images ``(N, C, H, W)`` on the CPU, C = 1 or 3, and the images' indices in their dataset, int64
    ``(N,)``; it returns uint8 ``(N, C, H, W)``.
    """

    @property
    def key(self) -> str:
        """The name of the change with all its options: equal keys mean equal changes."""

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """Change the images."""


@dataclass(frozen=True)
class Grey:
    r"""A change to grey: :math:``0.2989 R + 0.587 G + 0.114 B`` (ITU-R 601, rounded down) in all three channels.

    An image with one channel stays as it is. This is torchvision's ``rgb_to_grayscale``.

    Raises:
        TypeError: If images are not uint8 or indices not int64.
        ValueError: If a shape is wrong.

    Examples:
        >>> red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)
        >>> Grey()(red, torch.tensor([0])).flatten().tolist()
        [76, 76, 76]
    """

    key = "grey"

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """Change the images."""
        check_images(images, indices)
        grey: Tensor = TF.rgb_to_grayscale(images, num_output_channels=images.shape[1])
        return grey


@dataclass(frozen=True)
class Rotation:
    """A counterclockwise rotation by right angles, without interpolation.

    Args:
        degrees: 0, 90, 180 or 270.

    Raises:
        TypeError: If ``degrees`` is not an integer, images are not uint8 or indices not int64.
        ValueError: If ``degrees`` is another angle, a shape is wrong, or images are not square for 90 or 270 degrees:
            their shape would reveal the rotation.

    Examples:
        >>> image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).view(1, 1, 2, 2)
        >>> Rotation(90)(image, torch.tensor([0])).squeeze().tolist()
        [[2, 4], [1, 3]]
    """

    degrees: int

    def __post_init__(self) -> None:
        check_choice("degrees", check_int("degrees", self.degrees), (0, 90, 180, 270))

    @property
    def key(self) -> str:
        """The name of the change and its angle."""
        return f"rotation(degrees={self.degrees})"

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """Change the images."""
        check_images(images, indices)
        height, width = images.shape[-2:]
        if self.degrees % 180 and height != width:
            raise ValueError(
                f"Expected argument `images` to be square for a rotation by {self.degrees} degrees, but got height "
                f"{height} and width {width}"
            )
        return images.rot90(self.degrees // 90, dims=(-2, -1))


@dataclass(frozen=True)
class Sobel:
    r"""The edges of an image: the magnitude of the Sobel gradient in each channel, :math:``\sqrt{g_x^2 + g_y^2}``.

    The magnitude is divided by :math:``\sqrt{20}``, its maximum for values in [0, 1], and rounded: it uses the
    whole range 0..255 without clipping. Borders are replicated.

    Raises:
        TypeError: If images are not uint8 or indices not int64.
        ValueError: If a shape is wrong.

    Examples:
        >>> step = torch.tensor([0, 0, 255, 255], dtype=torch.uint8).view(1, 1, 1, 4)
        >>> Sobel()(step, torch.tensor([0])).flatten().tolist()  # 4 * 255 / sqrt(20)
        [0, 228, 228, 0]
    """

    key = "sobel"

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """Change the images."""
        check_images(images, indices)
        # Smooth along one axis with (1, 2, 1), then take central differences along the other: g_y and g_x.
        padded = F.pad(images.float(), [1, 1, 1, 1], mode="replicate")
        down = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]  # integers, exact in float32
        across = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
        magnitude = torch.hypot(down[..., 2:] - down[..., :-2], across[:, :, 2:] - across[:, :, :-2])
        return (magnitude / _SOBEL_MAX).round().to(torch.uint8)


@dataclass(frozen=True)
class GaussianNoise:
    r"""Additive Gaussian noise: :math:``x + 255 \sigma n``, n standard normal, rounded and clipped to 0..255.

    The noise of an image comes from numpy's ``default_rng((seed, index))``.

    Args:
        std: :math:``\sigma`` as a share of the range of values, finite and above 0.
        seed: At least 0.

    Raises:
        TypeError: If an option has the wrong type, images are not uint8 or indices not int64.
        ValueError: If an option is out of range, a shape is wrong or an index is below 0.

    Examples:
        >>> grey = torch.full((2, 1, 1, 4), 128, dtype=torch.uint8)
        >>> noisy = GaussianNoise(0.1, seed=0)(grey, torch.tensor([5, 3]))
        >>> bool((noisy[:1] == GaussianNoise(0.1, seed=0)(grey[:1], torch.tensor([5]))).all())
        True
    """

    std: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("std", self.std, above=0)
        check_int("seed", self.seed, low=0)

    @property
    def key(self) -> str:
        """The name of the change and its options."""
        return f"gaussian_noise(std={float(self.std)!r},seed={int(self.seed)})"

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """Change the images."""
        check_images(images, indices)
        if len(indices) and indices.min() < 0:
            raise ValueError(f"Expected argument `indices` to be at least 0, but got {int(indices.min())}")
        noise = np.empty(images.shape, dtype=np.float32)
        for row, index in zip(noise, indices.tolist(), strict=True):
            np.random.default_rng((self.seed, index)).standard_normal(dtype=np.float32, out=row)
        noisy = images + torch.from_numpy(noise) * (255 * float(self.std))
        return noisy.round().clamp(0, 255).to(torch.uint8)


def transformation_tasks(*, in_chans: int, seed: int = 0) -> dict[str, tuple[Change | None, ...]]:
    """Return the tasks of SimCLR's table 3: a probe predicts the change of an image. The corruption is Gaussian noise.

    Source: Chen et al., *A Simple Framework for Contrastive Learning of Visual Representations* (ICML 2020), section
    4.2, which probes colour or grey, rotation, original or corrupted, original or Sobel-filtered.

    Args:
        in_chans: 1 or 3; with 1 there is no "colour" task, as nothing changes.
        seed: Seed of the noise.

    Returns:
        For "colour" (2 variants), "rotation" (4), "corruption" (2) and "sobel" (2) the changes of the variants; None
        leaves the image.

    Raises:
        ValueError: If ``in_chans`` is neither 1 nor 3.

    Examples:
        >>> {task: len(variants) for task, variants in transformation_tasks(in_chans=1).items()}
        {'rotation': 4, 'corruption': 2, 'sobel': 2}
    """
    check_choice("in_chans", in_chans, (1, 3))
    tasks: dict[str, tuple[Change | None, ...]] = {
        "colour": (None, Grey()),
        "rotation": (None, Rotation(90), Rotation(180), Rotation(270)),
        "corruption": (None, GaussianNoise(seed=seed)),
        "sobel": (None, Sobel()),
    }
    if in_chans == 1:
        del tasks["colour"]
    return tasks


def check_images(images: Tensor, indices: Tensor) -> None:
    """Raise unless the images are uint8 (N, C, H, W), C = 1 or 3, and the indices int64 (N,)."""
    for name, value, dtype in (("images", images, torch.uint8), ("indices", indices, torch.int64)):
        check_dense(name, value)
        if value.dtype != dtype:
            raise TypeError(f"Expected argument `{name}` to be {dtype}, but got {value.dtype}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(
            f"Expected argument `images` to have shape (N, C, H, W) with C = 1 or 3, but got {tuple(images.shape)}"
        )
    if indices.shape != images.shape[:1]:
        raise ValueError(
            f"Expected argument `indices` to have one index per image, shape ({len(images)},), but got shape "
            f"{tuple(indices.shape)}"
        )
