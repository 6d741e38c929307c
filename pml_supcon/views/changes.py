"""Fixed changes of images that a probe is to recognise: without colour, turned, noisy, or edges alone.

A change takes uint8 images and their places in a data set, and gives uint8 images of the same shape. What is random in
it is drawn per image, from its own seed and the image's place: the same whatever the batch, and whoever computes it.
"""

import math
import numbers
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

DEGREES = (0, 90, 180, 270)
NOISE_STD = 0.1
_SOBEL_MAX = math.sqrt(20)  # the largest magnitude of values in [0, 1]: 4 in one direction with 2 in the other


class Change(Protocol):
    """A change of images.

    Called with uint8 images ``(N, C, H, W)`` on the CPU, C 1 or 3, and int64 ``(N,)``, the images' places in their data
    set; returns uint8 ``(N, C, H, W)``.
    """

    @property
    def key(self) -> str:
        """Name the change and all its options: changes with the same key are the same."""
        ...

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """Change the images."""
        ...


@dataclass(frozen=True)
class Grey:
    r"""Colour taken away: :math:`0.2989 R + 0.587 G + 0.114 B` (ITU-R 601, rounded down) in all three channels.

    An image with one channel stays as it is. torchvision's ``rgb_to_grayscale``.

    Raises:
        TypeError: When called, if images are not uint8 or indices not int64.
        ValueError: When called, if a shape is wrong.

    Examples:
        >>> red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)
        >>> Grey()(red, torch.tensor([0])).flatten().tolist()
        [76, 76, 76]
    """

    @property
    def key(self) -> str:
        """The change's name."""
        return "grey"

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """Change the images."""
        _check(images, indices)
        grey: Tensor = TF.rgb_to_grayscale(images, num_output_channels=images.shape[1])
        return grey


@dataclass(frozen=True)
class Rotation:
    """A turn by right angles, counterclockwise; no pixel is interpolated.

    Args:
        degrees: 0, 90, 180 or 270.

    Raises:
        TypeError: If ``degrees`` is not an integer; when called, if images are not uint8 or indices not int64.
        ValueError: If ``degrees`` is another; when called, if a shape is wrong, or if an image that is not square is
            to be turned by 90 or 270 degrees: its shape would tell the turn.

    Examples:
        >>> image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).view(1, 1, 2, 2)
        >>> Rotation(90)(image, torch.tensor([0])).squeeze().tolist()
        [[2, 4], [1, 3]]
    """

    degrees: int

    def __post_init__(self) -> None:
        if not isinstance(self.degrees, numbers.Integral) or isinstance(self.degrees, bool):
            raise TypeError(f"Expected argument `degrees` to be an integer, but got {self.degrees!r}.")
        if self.degrees not in DEGREES:
            raise ValueError(f"Expected argument `degrees` to be one of {DEGREES}, but got {self.degrees}.")

    @property
    def key(self) -> str:
        """The change's name and its angle."""
        return f"rotation(degrees={self.degrees})"

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """Change the images."""
        _check(images, indices)
        height, width = images.shape[-2:]
        if self.degrees % 180 and height != width:
            raise ValueError(
                f"Expected argument `images` to be square for a rotation by {self.degrees} degrees, but got height "
                f"{height} and width {width}."
            )
        return images.rot90(self.degrees // 90, dims=(-2, -1))


@dataclass(frozen=True)
class Sobel:
    r"""Edges alone: the magnitude of the Sobel gradient in each channel, :math:`\sqrt{g_x^2 + g_y^2}`.

    It is divided by :math:`\sqrt{20}`, the largest that values in [0, 1] can give, and rounded: the whole of 0..255 is
    open to it and nothing is cut off. Beyond the border lie copies of the border.

    Raises:
        TypeError: When called, if images are not uint8 or indices not int64.
        ValueError: When called, if a shape is wrong.

    Examples:
        >>> step = torch.tensor([0, 0, 255, 255], dtype=torch.uint8).view(1, 1, 1, 4)
        >>> Sobel()(step, torch.tensor([0])).flatten().tolist()  # 4 * 255 / sqrt(20)
        [0, 228, 228, 0]
    """

    @property
    def key(self) -> str:
        """The change's name."""
        return "sobel"

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """Change the images."""
        _check(images, indices)
        padded = F.pad(images.float(), [1, 1, 1, 1], mode="replicate")
        down = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]  # whole numbers: exact in float32
        across = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
        magnitude = torch.hypot(down[..., 2:] - down[..., :-2], across[:, :, 2:] - across[:, :, :-2])
        return (magnitude / _SOBEL_MAX).round().to(torch.uint8)


@dataclass(frozen=True)
class GaussianNoise:
    r"""Noise added to every value: :math:`x + 255 \sigma n`, n standard normal, rounded and cut to 0..255.

    The noise of an image follows from the seed and its place, by numpy's ``default_rng((seed, index))``.

    Args:
        std: :math:`\sigma` as a share of the range of values, finite and above 0.
        seed: At least 0.

    Raises:
        TypeError: If an option has the wrong type; when called, if images are not uint8 or indices not int64.
        ValueError: If an option is out of range; when called, if a shape is wrong or an index is below 0.

    Examples:
        >>> grey = torch.full((2, 1, 1, 4), 128, dtype=torch.uint8)
        >>> noisy = GaussianNoise(0.1, seed=0)(grey, torch.tensor([5, 3]))
        >>> bool((noisy[:1] == GaussianNoise(0.1, seed=0)(grey[:1], torch.tensor([5]))).all())
        True
    """

    std: float = NOISE_STD
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.std, numbers.Real) or isinstance(self.std, bool):
            raise TypeError(f"Expected argument `std` to be a number, but got {self.std!r}.")
        if not 0 < self.std < math.inf:
            raise ValueError(f"Expected argument `std` to be finite and above 0, but got {self.std!r}.")
        if not isinstance(self.seed, numbers.Integral) or isinstance(self.seed, bool):
            raise TypeError(f"Expected argument `seed` to be an integer, but got {self.seed!r}.")
        if self.seed < 0:
            raise ValueError(f"Expected argument `seed` to be at least 0, but got {self.seed}.")

    @property
    def key(self) -> str:
        """The change's name and its options."""
        return f"gaussian_noise(std={float(self.std)!r},seed={int(self.seed)})"

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """Change the images."""
        _check(images, indices)
        if len(indices) and indices.min() < 0:
            raise ValueError(f"Expected argument `indices` to be at least 0, but got {int(indices.min())}.")
        noise = np.empty(images.shape, dtype=np.float32)
        for row, index in zip(noise, indices.tolist(), strict=True):
            np.random.default_rng((self.seed, index)).standard_normal(dtype=np.float32, out=row)
        noisy = images + torch.from_numpy(noise) * (255 * float(self.std))
        return noisy.round().clamp(0, 255).to(torch.uint8)


def _check(images: Tensor, indices: Tensor) -> None:
    for name, value, dtype in (("images", images, torch.uint8), ("indices", indices, torch.int64)):
        if not isinstance(value, Tensor):
            raise TypeError(f"Expected argument `{name}` to be a torch tensor, but got {type(value).__name__}.")
        if value.dtype != dtype:
            wanted = str(dtype).removeprefix("torch.")
            raise TypeError(f"Expected argument `{name}` to be {wanted}, but got {value.dtype}.")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(
            "Expected argument `images` to have shape (N, C, H, W) with 1 or 3 channels, but got "
            f"{tuple(images.shape)}."
        )
    if indices.shape != images.shape[:1]:
        raise ValueError(
            f"Expected argument `indices` to have one index per image, shape ({len(images)},), but got shape "
            f"{tuple(indices.shape)}."
        )
