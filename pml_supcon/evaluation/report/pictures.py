"""Pictures as data URIs, small enough that a page of thousands stays light."""

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, features

Pixels: TypeAlias = npt.NDArray[np.uint8]
PIXELATED = 48  # pictures with no side longer than this are enlarged without smoothing
LOSSY_QUALITY = 78
SMALLEST_SIDE = 8


class Picture(NamedTuple):
    """An image of the page: its data URI, and whether it is to be enlarged without smoothing."""

    uri: str
    pixelated: bool


class Atlas(NamedTuple):
    """Many pictures on one sheet, in rows of `columns`, each in a square of equal side."""

    uri: str
    columns: int
    rows: int
    pixelated: bool


def check_pictures(pictures: Mapping[str, Mapping[int, Any]], wanted: Mapping[str, Iterable[int]]) -> None:
    """Raise unless each wanted index of a split has a uint8 picture `(H, W)` or `(H, W, 3)`.

    Raises:
        TypeError: a picture is not a uint8 array.
        ValueError: one is missing, or has another shape.
    """
    for split, indices in wanted.items():
        for index in indices:
            where = f"pictures[{split!r}][{index}]"
            pixels = pictures.get(split, {}).get(index)
            if pixels is None:
                raise ValueError(f"Expected `{where}` to be there, for it is to be shown, but got none.")
            if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
                got = getattr(pixels, "dtype", type(pixels).__name__)
                raise TypeError(f"Expected `{where}` to be a uint8 array, but got {got}.")
            if 0 in pixels.shape or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
                raise ValueError(f"Expected `{where}` to have shape (H, W) or (H, W, 3), but got {pixels.shape}.")


def encode_each(pictures: Sequence[Pixels], side: int, budget: int) -> list[Picture]:
    """One data URI per picture, within `budget` bytes in all if that can be.

    PNG is tried first, then lossy compression (photographs are several times smaller), then both with less of a side.
    """
    encoded = _within(lambda limit: [_thumbnail(pixels, limit) for pixels in pictures], side, budget)
    return [Picture(uri, max(pixels.shape[:2]) <= PIXELATED) for uri, pixels in zip(encoded, pictures, strict=True)]


def encode_atlas(pictures: Sequence[Pixels], side: int, budget: int) -> Atlas:
    """All pictures on one sheet, within `budget` bytes if that can be, as `encode_each` does."""
    largest = max((max(pixels.shape[:2]) for pixels in pictures), default=1)
    columns = max(1, math.isqrt(max(0, len(pictures) - 1)) + 1)
    rows = max(1, math.ceil(len(pictures) / columns))

    def sheet(limit: int) -> list[Image.Image]:
        return [_sheet([_thumbnail(pixels, limit) for pixels in pictures], columns, rows, limit)]

    return Atlas(_within(sheet, min(side, largest), budget)[0], columns, rows, largest <= PIXELATED)


def _within(make: Callable[[int], list[Image.Image]], side: int, budget: int) -> list[str]:
    """The data URIs of the images that `make` makes for a side, of the best quality that fits, else of the smallest."""
    while True:
        images = make(side)
        for lossy in (False, True):
            encoded = [_encode(image, lossy) for image in images]
            if sum(map(len, encoded)) <= budget:
                return encoded
        if side <= SMALLEST_SIDE:
            return encoded
        side = max(SMALLEST_SIDE, side * 3 // 4)


def _thumbnail(pixels: Pixels, side: int) -> Image.Image:
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.BOX)  # leaves what is small enough as it is
    return picture


def _sheet(pictures: Sequence[Image.Image], columns: int, rows: int, side: int) -> Image.Image:
    grey = all(picture.mode == "L" for picture in pictures)
    sheet = Image.new("L" if grey else "RGB", (columns * side, rows * side))
    for place, picture in enumerate(pictures):
        corner = (side - picture.width) // 2, (side - picture.height) // 2
        sheet.paste(picture, (place % columns * side + corner[0], place // columns * side + corner[1]))
    return sheet


def _encode(picture: Image.Image, lossy: bool) -> str:
    buffer = BytesIO()
    kind = "png" if not lossy else "webp" if features.check("webp") else "jpeg"
    if lossy:
        picture.save(buffer, format=kind, quality=LOSSY_QUALITY)
    else:
        picture.save(buffer, format=kind)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
