"""A corruption of ImageNet-C at one severity, as a change of image batches."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pml_supcon._checks import check_choice, check_int, check_type
from pml_supcon._extras import require_imagecorruptions
from pml_supcon.corruptions import cifar_c
from pml_supcon.corruptions._draws import Words, draw_words, seeded_numpy
from pml_supcon.views.changes import check_images

Strengths: TypeAlias = Literal["auto", "32", "224"]
Pixels: TypeAlias = npt.NDArray[np.uint8]

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),  # noise
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),  # blur
    *("snow", "frost", "fog", "brightness"),  # weather
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),  # digital
)
SEVERITIES = (1, 2, 3, 4, 5)

_INTEGERS = (torch.int32, torch.int16, torch.int8, torch.uint8)
_SMALL_IMAGE = 64  # pixels a side: "auto" selects "32" up to this size
_NOISES = ("gaussian_noise", "shot_noise", "impulse_noise")
_LEAST_SIDE = 32  # kernels, fractals and the library need this side
_LEAST_SIDES = {  # these have no lengths in pixels; pixelation needs 4 pixels, since it divides the side
    **dict.fromkeys((*_NOISES, "brightness", "contrast", "jpeg_compression"), 1),
    "pixelate": 4,
}


def strengths_for(height: int, width: int) -> Literal["32", "224"]:
    """Return the strengths that "auto" selects for images of this size.

    Args:
        height: in pixels.
        width: in pixels.

    Returns:
        "32" if no side is above 64, else "224".

    Examples:
        >>> strengths_for(32, 32), strengths_for(224, 224)
        ('32', '224')
    """
    check_int("height", height, low=1)
    check_int("width", width, low=1)
    return "32" if max(height, width) <= _SMALL_IMAGE else "224"


class Corruption:
    r"""A corruption of ImageNet-C at one severity, drawn separately for every image.

    The random draws of an image depend only on the seed

    .. math:: \text{SeedSequence}(\text{seed}, \text{index of name in CORRUPTIONS}, \text{severity}, \text{index})

    and not on its batch or the process. The library draws from numpy's global generator, whose state is restored
    afterwards, also after an error; threads take turns.

    Args:
        name: one of ``CORRUPTIONS``.
        severity: 1 (weak) to 5.
        strengths: "32" for the strengths of CIFAR-10-C, for 32 pixels; "224" for the strengths of ImageNet-C;
            "auto" for "32" where no side is above 64 pixels, else "224".
        seed: >= 0.

    Attributes:
        key: a text with the corruption's name and all options, for the names of cached files.

    A call takes images, uint8 ``(N, C, H, W)`` on the CPU with C = 1 or 3, and their indices in the data set, integers
    ``(N,)`` from 0. It returns new images of the same shape and dtype. Values are truncated to whole numbers, not
    rounded, as in both benchmarks.

    Grey images (C = 1) stay grey: noise is drawn for one channel; the other corruptions act on three equal channels,
    and the result is converted to luminance (ITU-R 601).

    Noise, brightness, contrast, pixelation (from 4 pixels) and JPEG have no lengths in pixels and take images of any
    size. The other corruptions have lengths that do not fit images under 32 pixels: there every pixel is repeated until
    no side is under 32, and the repeated pixels are averaged afterwards and rounded. Unchanged pixels are then returned
    exactly, and the corruption is as strong as in an image of 32 pixels.

    The root mean square distance to the clean images rises with the severity. The benchmarks' own constants have
    exceptions: glass blur and frost at both strengths; at "32" the elastic transform, which falls, and motion blur from
    3 to 4, which is constant; at "224" snow from 2 to 3 and fog from 3 to 4, which are about constant (and fall in mean
    absolute distance).

    Raises:
        ImportError: If the library is not installed.
        TypeError: If an option or an argument has the wrong type, or images are not uint8.
        ValueError: If a name, severity, strength, seed or shape is wrong.

    Source:
        Hendrycks & Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR
        2019, section 4. "224" calls imagecorruptions-imaug. "32" has the constants of CIFAR-10-C, with these
        differences: motion blur (also in snow) is the library's, not ImageMagick's; the lengths of the elastic
        transform are fractions of the image's side; the random draws differ.

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
        check_type("name", name, str, "a string")
        check_choice("name", name, CORRUPTIONS)
        check_choice("strengths", strengths, get_args(Strengths))
        self.name, self.strengths = name, strengths
        self.severity = check_int("severity", severity, low=SEVERITIES[0], high=SEVERITIES[-1])
        self.seed = check_int("seed", seed, low=0)
        require_imagecorruptions()
        self.key = f"corruption-{name}-severity{self.severity}-strengths_{strengths}-seed{self.seed}"

    def __call__(self, images: Tensor, indices: Tensor | Sequence[int]) -> Tensor:
        """Corrupt the images (N, C, H, W) with the indices (N,) in their data set."""
        numbers = torch.as_tensor(indices)
        if numbers.dtype in _INTEGERS or not numbers.numel():
            numbers = numbers.long()
        check_images(images, numbers)
        if images.device.type != "cpu":
            raise ValueError(f"Expected argument `images` to be on the CPU, but got {images.device}")
        if (numbers < 0).any():
            raise ValueError(f"Expected argument `indices` to be at least 0, but got {int(numbers.min())}")
        corrupted = torch.empty_like(images, memory_format=torch.contiguous_format)
        for image, index, result in zip(images, numbers.tolist(), corrupted, strict=True):
            pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
            result.copy_(torch.from_numpy(self._corrupt(pixels, index)).permute(2, 0, 1))
        return corrupted

    def __repr__(self) -> str:
        return f"Corruption({self.name!r}, {self.severity}, strengths={self.strengths!r}, seed={self.seed})"

    def _corrupt(self, pixels: Pixels, index: int) -> Pixels:
        """Corrupt one image (H, W, C)."""
        # Repeat the pixels of an image that is too small: factor 1 keeps it.
        factor = -(-_LEAST_SIDES.get(self.name, _LEAST_SIDE) // min(pixels.shape[:2]))
        strengths = strengths_for(*pixels.shape[:2]) if self.strengths == "auto" else self.strengths
        large = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
        grey = pixels.shape[2] == 1
        if grey:
            large = large[..., 0] if self.name in _NOISES else large.repeat(3, axis=2)
        words = draw_words(self.seed, CORRUPTIONS.index(self.name), self.severity, index)
        corrupt = cifar_c.corrupt if strengths == "32" else _corrupt_by_library
        with seeded_numpy(words):
            changed = corrupt(large, self.name, self.severity, words).astype(np.uint8)
        if grey and changed.ndim == 3:
            changed = np.array(Image.fromarray(changed).convert("L"))
        return _averaged(changed.reshape(*large.shape[:2], -1), factor)


def _corrupt_by_library(pixels: Pixels, name: str, severity: int, words: Words) -> npt.NDArray[Any]:
    """Corrupt one image (H, W, 3), for the noises also (H, W), with the library, whose strengths are ImageNet-C's."""
    function = require_imagecorruptions().corruption_dict[name]
    # These two draw from a generator of their own; the others from numpy's global one, which is seeded.
    options = {"seed": int(words[0])} if name in ("glass_blur", "impulse_noise") else {}
    return np.asarray(function(Image.fromarray(pixels), severity, **options))


def _averaged(pixels: Pixels, factor: int) -> Pixels:
    """Average squares of ``factor`` x ``factor`` pixels, rounded."""
    if factor == 1:
        return pixels
    height, width, channels = pixels.shape
    squares = pixels.reshape(height // factor, factor, width // factor, factor, channels)
    means: Pixels = np.rint(squares.mean(axis=(1, 3))).astype(np.uint8)
    return means
