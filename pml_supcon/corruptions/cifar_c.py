"""The corruptions with the strengths of CIFAR-10-C, for images of about 32 pixels.

The constants are from the script of CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019; repository hendrycks/robustness,
``ImageNet-C/create_c/make_cifar_c.py``). The fractal, the disk, the motion blur, the zoom, the shuffle and the pictures
of frost are from the library imagecorruptions. Every function takes a uint8 image ``(H, W, 3)``, or ``(H, W)`` for the
noises, and returns the same shape in [0, 255], not yet truncated to whole numbers.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from io import BytesIO
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from pml_supcon._extras import require_imagecorruptions
from pml_supcon.corruptions._draws import Words

Pixels: TypeAlias = npt.NDArray[np.uint8]
Values: TypeAlias = npt.NDArray[Any]

_FROST = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")  # CIFAR-10-C leaves out the sixth


def corrupt(pixels: Pixels, name: str, severity: int, words: Words) -> Values:
    """Corrupt one image, inside ``seeded_numpy``: the library's fractal draws from numpy's global generator."""
    function, strengths = _TABLE[name]
    return function(pixels, np.random.default_rng(words), *strengths[severity - 1])


def _gaussian_noise(pixels: Pixels, rng: Generator, deviation: float) -> Values:
    return _scaled(pixels / 255 + rng.normal(scale=deviation, size=pixels.shape))


def _shot_noise(pixels: Pixels, rng: Generator, photons: int) -> Values:
    return _scaled(rng.poisson(pixels / 255 * photons) / photons)


def _impulse_noise(pixels: Pixels, rng: Generator, share: float) -> Values:
    lost = rng.random(pixels.shape) < share
    return np.where(lost, 255 * rng.integers(2, size=pixels.shape), pixels)


def _defocus_blur(pixels: Pixels, rng: Generator, radius: float, alias_blur: float) -> Values:
    library = _library()
    return _scaled(library.cv2.filter2D(pixels / 255, -1, library.disk(radius, alias_blur)))


def _glass_blur(pixels: Pixels, rng: Generator, sigma: float, distance: int, rounds: int) -> Values:
    blurred = (gaussian_filter(pixels / 255, (sigma, sigma, 0), mode="nearest") * 255).astype(np.uint8)
    options = (sigma, distance, rounds)
    shuffled = _library()._shuffle_pixels_njit_glass_blur(*pixels.shape[:2], blurred, options, int(rng.integers(2**32)))
    return _scaled(gaussian_filter(shuffled / 255, (sigma, sigma, 0), mode="nearest"))


def _motion_blur(pixels: Pixels, rng: Generator, radius: int, sigma: float) -> Values:
    # CIFAR-10-C used ImageMagick: the same kernel, one side of a Gaussian, sampled between pixels; here on pixels.
    return np.asarray(_library()._motion_blur(pixels, radius, sigma, rng.uniform(-45, 45)))


def _zoom_blur(pixels: Pixels, rng: Generator, largest: float) -> Values:
    image = (pixels / 255).astype(np.float32)
    zooms = np.arange(1, largest, 0.01)
    total = image + sum(_zoomed(image, zoom) for zoom in zooms)
    return _scaled(total / (len(zooms) + 1))


def _snow(
    pixels: Pixels,
    rng: Generator,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    kept: float,
) -> Values:
    flakes = _zoomed(rng.normal(mean, deviation, size=(*pixels.shape[:2], 1)), zoom)[..., 0]
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = np.floor(flakes * 255)  # CIFAR-10-C stored the flakes as whole numbers before and after the blur
    flakes = np.round(_library()._motion_blur(flakes, radius, sigma, rng.uniform(-135, -45)))[..., np.newaxis] / 255
    image = pixels / 255
    brightness = image @ (0.299, 0.587, 0.114)
    whitened = kept * image + (1 - kept) * np.maximum(image, brightness[..., np.newaxis] * 1.5 + 0.5)
    return _scaled(whitened + flakes + np.rot90(flakes, k=2).reshape(flakes.shape))


def _frost(pixels: Pixels, rng: Generator, kept: float, added: float) -> Values:
    height, width = pixels.shape[:2]
    pictures = _frost_pictures(height, width)
    picture = pictures[rng.integers(len(pictures))]
    top = rng.integers(picture.shape[0] - height + 1)
    left = rng.integers(picture.shape[1] - width + 1)
    return _scaled((kept * pixels + added * picture[top : top + height, left : left + width]) / 255)


def _fog(pixels: Pixels, rng: Generator, added: float, decay: float) -> Values:
    height, width = pixels.shape[:2]
    side = 1 << (max(height, width) - 1).bit_length()
    heights = _library().plasma_fractal(mapsize=side, wibbledecay=decay)[:height, :width, np.newaxis]
    image = pixels / 255
    brightest = image.max()
    return _scaled((image + added * heights) * brightest / (brightest + added))


def _brightness(pixels: Pixels, rng: Generator, added: float) -> Values:
    image = pixels / 255
    value = image.max(axis=-1, keepdims=True)  # V of HSV is raised; hue and saturation stay
    raised = np.clip(value + added, 0, 1)
    return _scaled(np.where(value > 0, image * raised / np.where(value > 0, value, 1), raised))


def _contrast(pixels: Pixels, rng: Generator, factor: float) -> Values:
    image = pixels / 255
    means = image.mean(axis=(0, 1), keepdims=True)
    return _scaled((image - means) * factor + means)


def _elastic_transform(pixels: Pixels, rng: Generator, alpha: float, sigma: float, move: float) -> Values:
    cv2, (height, width) = _library().cv2, pixels.shape[:2]
    side = min(height, width)
    centre, reach = np.array([width // 2, height // 2]), side // 3
    corners = (centre + reach * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    moved = corners + rng.uniform(-move * side, move * side, size=corners.shape).astype(np.float32)
    affine = cv2.getAffineTransform(corners, moved)
    image = (pixels / 255).astype(np.float32)
    image = cv2.warpAffine(image, affine, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    shifts = rng.uniform(-1, 1, size=(2, height, width))
    shifts = alpha * side * gaussian_filter(shifts, (0, sigma * side, sigma * side), mode="reflect", truncate=3)
    places = np.indices((height, width)) + shifts
    channels = [map_coordinates(image[..., c], places, order=1, mode="reflect") for c in range(image.shape[2])]
    return _scaled(np.stack(channels, axis=-1))


def _pixelate(pixels: Pixels, rng: Generator, share: float) -> Values:
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def _jpeg_compression(pixels: Pixels, rng: Generator, quality: int) -> Values:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


_TABLE: dict[str, tuple[Callable[..., Values], tuple[tuple[float, ...], ...]]] = {
    "gaussian_noise": (_gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))),
    "shot_noise": (_shot_noise, ((500,), (250,), (100,), (75,), (50,))),
    "impulse_noise": (_impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))),
    "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (_glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion_blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (_zoom_blur, ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,))),
    "snow": (
        _snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (_frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (_brightness, ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))),
    "contrast": (_contrast, ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))),
    "elastic_transform": (  # lengths as fractions of the image's side
        _elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (_pixelate, ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))),
    "jpeg_compression": (_jpeg_compression, ((80,), (65,), (58,), (50,), (40,))),
}


def _library() -> Any:
    return require_imagecorruptions().corruptions


def _scaled(image: Values) -> Values:
    """Clip an image to [0, 1] and scale it to [0, 255]."""
    return np.asarray(255 * np.clip(image, 0, 1))


def _zoomed(image: Values, zoom: float) -> Values:
    """Enlarge the middle of an image ``(H, W, C)`` and crop it centrally to the image's size."""
    larger = _library().clipped_zoom(image, zoom)
    top, left = ((larger.shape[axis] - image.shape[axis]) // 2 for axis in (0, 1))
    return np.asarray(larger[top : top + image.shape[0], left : left + image.shape[1]])


@lru_cache(maxsize=4)
def _frost_pictures(height: int, width: int) -> tuple[Pixels, ...]:
    """Return the pictures of frost in RGB, at a fifth of their size or larger if the image needs it; read once."""
    cv2, folder = _library().cv2, files("imagecorruptions") / "frost"
    pictures = []
    for name in _FROST:
        picture = cv2.imdecode(np.frombuffer((folder / name).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        rows, columns = picture.shape[:2]
        scale = max(0.2, height / rows, width / columns)
        size = max(width, round(columns * scale)), max(height, round(rows * scale))
        pictures.append(cv2.resize(picture, size)[..., ::-1])
    return tuple(pictures)
