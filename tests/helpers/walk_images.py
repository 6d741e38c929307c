"""Folders of images as a reader may have them: coloured shapes, PNG and JPEG, of many sizes.

python walk_images.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

#: The colour of most images of a class, and the number of corners of its shape.
CLASSES = {
    "disc": ((210, 60, 60), 60),
    "hexagon": ((70, 190, 80), 6),
    "square": ((80, 90, 220), 4),
    "triangle": ((220, 200, 70), 3),
}


def save_images(folder: Path, per_class: int, sides: tuple[int, int]) -> None:
    """Write images of each class into a folder of its name; `sides` are the least width or height and the most."""
    rng = np.random.default_rng(0)
    for name, (usual, corners) in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            width, height = rng.integers(*sides, 2, endpoint=True).tolist()
            noise = rng.integers(0, 60, (height, width, 3)) + rng.integers(0, 60, 3)
            image = Image.fromarray(noise.astype(np.uint8))
            radius = int(rng.integers(10, 15))
            x, y = (int(rng.integers(radius, side - radius)) for side in (width, height))
            colour = np.clip(rng.normal(usual, 25), 0, 255).astype(int)
            ImageDraw.Draw(image).regular_polygon((x, y, radius), corners, fill=tuple(colour.tolist()))
            image.save(folder / name / f"{number:03}.{'png' if number % 2 else 'jpg'}")


if __name__ == "__main__":
    save_images(Path(sys.argv[1]), per_class=40, sides=(48, 96))
