"""A folder of images as a newcomer may have one: coloured shapes, a folder for each class, PNG and JPEG, of many sizes.

python walk_images.py FOLDER
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PER_CLASS = 40
Draw = Callable[[ImageDraw.ImageDraw, int, int, int, tuple[int, ...]], None]


def disc(pen: ImageDraw.ImageDraw, x: int, y: int, r: int, colour: tuple[int, ...]) -> None:
    """A filled circle around (x, y)."""
    pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def square(pen: ImageDraw.ImageDraw, x: int, y: int, r: int, colour: tuple[int, ...]) -> None:
    """A filled square."""
    pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)


def triangle(pen: ImageDraw.ImageDraw, x: int, y: int, r: int, colour: tuple[int, ...]) -> None:
    """A filled triangle that stands on its base."""
    pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)


def ring(pen: ImageDraw.ImageDraw, x: int, y: int, r: int, colour: tuple[int, ...]) -> None:
    """A circle with a hole."""
    pen.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=max(2, r // 4))


#: How a class is drawn, and the colour that most of its images are near to, as with flowers.
CLASSES: dict[str, tuple[Draw, tuple[int, int, int]]] = {
    "disc": (disc, (210, 60, 60)),
    "ring": (ring, (70, 190, 80)),
    "square": (square, (80, 90, 220)),
    "triangle": (triangle, (220, 200, 70)),
}


def write(folder: Path) -> int:
    """Write the images; returns their number."""
    rng = np.random.default_rng(0)
    for name, (draw, usual) in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            width, height = rng.integers(48, 97, 2).tolist()
            noise = rng.integers(0, 60, (height, width, 3)) + rng.integers(0, 60, 3)
            image = Image.fromarray(noise.astype(np.uint8))
            radius = int(rng.integers(12, 20))
            x, y = (int(rng.integers(radius, side - radius)) for side in (width, height))
            colour = np.clip(rng.normal(usual, 25), 0, 255).astype(int)
            draw(ImageDraw.Draw(image), x, y, radius, tuple(colour.tolist()))
            image.save(folder / name / f"{number:03}.{'png' if number % 2 else 'jpg'}")
    return PER_CLASS * len(CLASSES)


if __name__ == "__main__":
    print(write(Path(sys.argv[1])), "images in", sys.argv[1])
