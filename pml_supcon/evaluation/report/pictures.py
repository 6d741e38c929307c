"""Pictures as data URIs within a budget of bytes, so that a page with thousands of them stays small."""

import base64
import math
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import NamedTuple

from PIL import Image, features

from pml_supcon.evaluation.results import Pixels

PIXELATED = 48  # pictures up to this side are enlarged without smoothing
LOSSY_QUALITY = 78
SMALLEST_SIDE = 8


class Picture(NamedTuple):
    """An image of the page: its data URI; ``pixelated``: the browser enlarges it without smoothing."""

    uri: str
    pixelated: bool


class Atlas(NamedTuple):
    """Many pictures on one sheet of ``rows`` x ``columns`` squares of equal side."""

    uri: str
    columns: int
    rows: int
    pixelated: bool


def encode_each(pictures: Sequence[Pixels], side: int, budget: int) -> list[Picture]:
    """Encode each picture, within ``budget`` bytes together if possible.

    PNG comes first, then lossy compression (several times smaller for photographs), then both at a smaller side.
    """
    encoded = _within(lambda limit: [_thumbnail(pixels, limit) for pixels in pictures], side, budget)
    return [Picture(uri, max(pixels.shape[:2]) <= PIXELATED) for uri, pixels in zip(encoded, pictures, strict=True)]


def encode_atlas(pictures: Sequence[Pixels], side: int, budget: int) -> Atlas:
    """Encode all pictures on one sheet, within ``budget`` bytes if possible, as `encode_each` does."""
    largest = max((max(pixels.shape[:2]) for pixels in pictures), default=1)
    # the smallest square that holds all pictures, without its empty rows
    columns = max(1, math.isqrt(max(0, len(pictures) - 1)) + 1)
    rows = max(1, math.ceil(len(pictures) / columns))

    def sheet(limit: int) -> list[Image.Image]:
        return [_sheet([_thumbnail(pixels, limit) for pixels in pictures], columns, rows, limit)]

    return Atlas(_within(sheet, min(side, largest), budget)[0], columns, rows, largest <= PIXELATED)


def _within(make: Callable[[int], list[Image.Image]], side: int, budget: int) -> list[str]:
    """Encode the images that ``make`` returns for a side, at the best quality that fits, else at the smallest side."""
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
    picture.thumbnail((side, side), Image.Resampling.BOX)  # does not enlarge
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
