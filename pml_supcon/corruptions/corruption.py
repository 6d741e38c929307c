"""`Corruption`: one of the 15 corruptions of ImageNet-C, at one severity, as a change of image batches."""

from collections.abc import Sequence
from difflib import get_close_matches
from numbers import Integral
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pml_supcon._extras import require_imagecorruptions
from pml_supcon.corruptions import cifar_c, imagenet_c
from pml_supcon.corruptions._draws import draw_words, seeded_numpy

Strengths: TypeAlias = Literal["auto", "32", "224"]
Pixels: TypeAlias = npt.NDArray[np.uint8]

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),  # noise
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),  # blur
    *("snow", "frost", "fog", "brightness"),  # weather
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),  # digital
)
SEVERITIES = (1, 2, 3, 4, 5)

_SMALL_IMAGE = 64  # "auto" takes the strengths of 32 pixels up to here
_NOISES = ("gaussian_noise", "shot_noise", "impulse_noise")
_LEAST_SIDE = 32  # what kernels, fractals and the library are made for
_LEAST_SIDES = {  # these know no lengths in pixels; a quarter of 4 pixels is one
    **dict.fromkeys((*_NOISES, "brightness", "contrast", "jpeg_compression"), 1),
    "pixelate": 4,
}


def strengths_for(height: int, width: int) -> Literal["32", "224"]:
    """Which strengths "auto" takes for images of this size.

    Args:
        height: in pixels.
        width: in pixels.

    Returns:
        "32" where no side is above 64, else "224".

    Examples:
        >>> strengths_for(32, 32), strengths_for(224, 224)
        ('32', '224')
    """
    return "32" if max(height, width) <= _SMALL_IMAGE else "224"


class Corruption:
    r"""One corruption of ImageNet-C at one severity, drawn for every image by itself.

    The draws of an image follow from

    .. math:: \text{SeedSequence}(\text{seed}, \text{place of name in CORRUPTIONS}, \text{severity}, \text{index})

    alone: not from the batch it comes in, its neighbours or the process. numpy's global generator, which the library
    draws from, is put back as it was, also after an error; threads that corrupt take turns.

    Args:
        name: one of `CORRUPTIONS`.
        severity: 1 (weak) to 5.
        strengths: "32": those of CIFAR-10-C, for images of about 32 pixels; "224": those of ImageNet-C; "auto": "32"
            where no side is above 64 pixels, else "224".
        seed: not negative.

    Attributes:
        key: text that names the corruption with all its options.

    Called with images, uint8 ``(N, C, H, W)`` on the CPU with C = 1 or 3, and indices, integers ``(N,)`` from 0, which
    are the images' places in their data set. It returns new images of the same shape and dtype. Values are cut, not
    rounded, to whole numbers, as both benchmarks do.

    Grey images (C = 1) stay grey: noise is drawn for the one channel; for all others the image is given three equal
    channels and the result is turned to luminance (ITU-R 601).

    Images with a side under 32 pixels keep their size under noise, brightness, contrast, pixelation (from 4 pixels) and
    JPEG, which know no lengths. For the others, whose lengths mean nothing on 8 x 8 pixels, every pixel is repeated
    until no side is under 32, and afterwards those pixels are averaged again and rounded: what the corruption leaves
    alone comes back exactly, and a corruption is as strong as it would be in an image of 32 pixels.

    Severities rise in the root mean square distance to the clean images, but for the constants of the benchmarks
    themselves: glass blur and frost at both strengths; at 32 pixels the elastic transform, which falls, and motion blur
    between 3 and 4, which is level; at 224 snow between 2 and 3 and fog between 3 and 4, which are about level (and
    fall in mean absolute distance).

    Raises:
        ImportError: If the library is not installed.
        TypeError: If an option or an argument has the wrong type, or images are not uint8.
        ValueError: If a name, severity, strength, seed or shape is wrong.

    Source:
        Hendrycks & Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR
        2019, section 4. "224" calls imagecorruptions-imaug. "32" has the constants of CIFAR-10-C, with these
        differences: motion blur (and that of snow) is the library's, not ImageMagick's; other lengths of the elastic
        transform follow the image's side; the draws are others.

    Examples:
        >>> images = torch.full((2, 3, 32, 32), 128, dtype=torch.uint8)
        >>> noisy = Corruption("gaussian_noise", 3)(images, torch.tensor([7, 9]))
        >>> bool((noisy[0] == noisy[1]).all())
        False
        >>> alone = Corruption("gaussian_noise", 3)(images[1:], torch.tensor([9]))
        >>> bool((noisy[1:] == alone).all())
        True
    """

    def __init__(self, name: str, severity: int, *, strengths: Strengths = "auto", seed: int = 0) -> None:
        _check_name(name)
        _check_whole(severity, "severity")
        if severity not in SEVERITIES:
            raise ValueError(f"Expected argument `severity` to be between 1 and 5, but got {severity}.")
        if strengths not in get_args(Strengths):
            raise ValueError(
                f"Expected argument `strengths` to be one of {get_args(Strengths)}, but got {strengths!r}."
            )
        _check_whole(seed, "seed")
        if seed < 0:
            raise ValueError(f"Expected argument `seed` to be at least 0, but got {seed}.")
        require_imagecorruptions()
        self.name, self.severity, self.strengths, self.seed = name, int(severity), strengths, int(seed)
        self.key = f"corruption-{name}-severity{self.severity}-strengths_{strengths}-seed{self.seed}"

    def __call__(self, images: Tensor, indices: Tensor | Sequence[int]) -> Tensor:
        """Corrupt the images (N, C, H, W), whose places in their data set are `indices` (N,)."""
        _check_images(images)
        places = _as_places(indices, len(images))
        corrupted = torch.empty_like(images, memory_format=torch.contiguous_format)
        for image, index, made in zip(images, places, corrupted, strict=True):
            pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
            made.copy_(torch.from_numpy(self._corrupt(pixels, index)).permute(2, 0, 1))
        return corrupted

    def __repr__(self) -> str:
        return f"Corruption({self.name!r}, {self.severity}, strengths={self.strengths!r}, seed={self.seed})"

    def _corrupt(self, pixels: Pixels, index: int) -> Pixels:
        """One image (H, W, C)."""
        factor = -(-_LEAST_SIDES.get(self.name, _LEAST_SIDE) // min(pixels.shape[:2]))
        strengths = strengths_for(*pixels.shape[:2]) if self.strengths == "auto" else self.strengths
        large = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
        grey = pixels.shape[2] == 1
        if grey:
            large = large[..., 0] if self.name in _NOISES else large.repeat(3, axis=2)
        words = draw_words(self.seed, CORRUPTIONS.index(self.name), self.severity, index)
        corrupt = cifar_c.corrupt if strengths == "32" else imagenet_c.corrupt
        with seeded_numpy(words):
            made = corrupt(large, self.name, self.severity, words).astype(np.uint8)
        if grey and made.ndim == 3:
            made = np.array(Image.fromarray(made).convert("L"))
        return _averaged(made.reshape(*large.shape[:2], -1), factor)


def _averaged(pixels: Pixels, factor: int) -> Pixels:
    """Squares of `factor` x `factor` pixels as one, rounded."""
    if factor == 1:
        return pixels
    height, width, channels = pixels.shape
    squares = pixels.reshape(height // factor, factor, width // factor, factor, channels)
    means: Pixels = np.rint(squares.mean(axis=(1, 3))).astype(np.uint8)
    return means


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"Expected argument `name` to be a string, but got {name!r}.")
    if name not in CORRUPTIONS:
        near = get_close_matches(name.lower().replace(" ", "_").replace("-", "_"), CORRUPTIONS, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Expected argument `name` to be one of {', '.join(CORRUPTIONS)}, but got {name!r}.{hint}")


def _check_whole(value: object, name: str) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"Expected argument `{name}` to be an integer, but got {value!r}.")


def _check_images(images: Any) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"Expected argument `images` to be a torch tensor, but got {type(images).__name__}.")
    if images.dtype != torch.uint8:
        raise TypeError(f"Expected argument `images` to be uint8, but got {images.dtype}.")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(
            f"Expected argument `images` to be (N, C, H, W) with C = 1 or 3, but got shape {tuple(images.shape)}."
        )
    if images.device.type != "cpu":
        raise ValueError(f"Expected argument `images` to be on the CPU, but got {images.device}.")


def _as_places(indices: Tensor | Sequence[int], rows: int) -> list[int]:
    places = torch.as_tensor(indices)
    if rows and (places.is_floating_point() or places.is_complex() or places.dtype == torch.bool):
        raise TypeError(f"Expected argument `indices` to be integers, but got {places.dtype}.")
    if places.shape != (rows,):
        raise ValueError(
            f"Expected argument `indices` to be one per image, shape ({rows},), but got shape {tuple(places.shape)}."
        )
    if (places < 0).any():
        raise ValueError(f"Expected argument `indices` to be at least 0, but got {int(places.min())}.")
    found: list[int] = places.tolist()
    return found
