"""Folders of small images, with a folder per class."""

import pytest
import torch
from PIL import Image

from pml_supcon.data.load import load_data

COLOURS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}


def write_classes(root, *, size=(12, 12), mode="RGB", suffix="png", **counts):
    """Write flat images of the named colours; the last channel of the first pixel of image i is i."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = Image.new("RGB", size, COLOURS[name])
            image.putpixel((0, 0), (*COLOURS[name][:2], i))
            image.convert(mode).save(root / name / f"{i:03}.{suffix}")


def random_images(folder, size, classes):
    """Write two training images and one test image of every class, of random pixels; return the folder."""
    torch.manual_seed(0)
    for split, number in (("train", 2), ("test", 1)):
        for label in range(classes):
            (folder / split / f"class{label:03d}").mkdir(parents=True)
            for index in range(number):
                pixels = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(folder / split / f"class{label:03d}" / f"{index}.png")
    return folder


def refuse(spec, message, **options):
    """Assert that the data cannot be opened, with this message."""
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_data(spec, **options)
