"""Canvases of touching digits, with the class of each pixel: a small task of segmentation."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_dilation
from torch import Tensor

from pml_supcon._checks import check_int

SIDES = (10, 14)  # smallest and largest side of a digit, in pixels
INK = 96  # the least brightness, of 255, of a pixel that belongs to a digit
COVERED = 0.1  # the largest share of a digit's ink that others may hide
TRIES = 30  # random places of a digit, of which the first that fits is taken


def digit_canvases(
    images: Tensor, labels: Tensor, number: int, *, size: int = 32, digits: int = 6, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw canvases on which digits touch, and the class of each pixel.

    The first digit is anywhere on its canvas. Each further one, of random size, touches those before it, which are in
    front of it and hide at most a tenth of it. A digit that fits nowhere in 30 tries is left out.

    Args:
        images: ``(n, 1, H, W)`` uint8, the digits to draw from, bright on 0.
        labels: ``(n,)`` integers in ``[0, C)``.
        number: canvases N, ``>= 1``.
        size: side S of a canvas, at least 14 pixels.
        digits: most digits on a canvas, ``>= 1``.
        seed: of all draws, ``>= 0``.

    Returns:
        Canvases ``(N, 1, S, S)`` uint8, and classes ``(N, S, S)`` int64: the label plus 1, 0 for the background.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a number is out of range.
    """
    check_int("number", number, low=1)
    check_int("size", size, low=SIDES[1])
    check_int("digits", digits, low=1)
    rng = np.random.default_rng(check_int("seed", seed, low=0))
    sides = range(SIDES[0], SIDES[1] + 1)
    enlarged = [F.interpolate(images.float(), size=side, mode="bilinear")[:, 0].byte().numpy() for side in sides]
    canvases = np.zeros((number, size, size), np.uint8)
    classes = np.zeros((number, size, size), np.int64)
    for canvas, ids in zip(canvases, classes, strict=True):
        for chosen in rng.integers(len(images), size=digits):
            digit = enlarged[rng.integers(len(enlarged))][chosen]
            ink = digit >= INK
            window = _place(ids > 0, ink, rng)
            if window is not None:
                ids[window][ink & (ids[window] == 0)] = int(labels[chosen]) + 1
                np.maximum(canvas[window], digit, out=canvas[window])
    return torch.from_numpy(canvases).unsqueeze(1), torch.from_numpy(classes)


def _place(
    taken: npt.NDArray[np.bool_], ink: npt.NDArray[np.bool_], rng: np.random.Generator
) -> tuple[slice, slice] | None:
    """Return a place of a digit where it touches the ink that is there, or None."""
    beside = binary_dilation(taken)
    for top, left in rng.integers(len(taken) - len(ink) + 1, size=(TRIES, 2)):
        window = slice(top, top + len(ink)), slice(left, left + len(ink))
        fits = (ink & taken[window]).sum() <= COVERED * ink.sum() and (ink & beside[window]).any()
        if fits or not taken.any():
            return window
    return None
