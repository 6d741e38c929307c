"""The geometry of the views: the affine map, in pixels, from an image to a view of it.

A step that moves pixels has a method ``with_geometry(images)`` beside its call: the same draws and the same images, and
their maps ``(N, 2, 3)``, or ``(2, 3)`` for one image; see ``_geometry`` for the convention. A step that changes values
in place, such as a jitter of colours, has the attribute ``keeps_positions = True``. Of any other step the geometry is
missing. A transform lists its steps in ``parts``.
"""

from typing import Any

import torch
from torch import Tensor

from pml_supcon._checks import shown
from pml_supcon._geometry import compose_maps, invert_maps


def check_geometry(name: str, step: Any) -> None:
    """Raise unless a step, or all parts of a transform, return their geometry or keep positions.

    Raises:
        ValueError: If it is missing.
    """
    for part in getattr(step, "parts", ()):
        check_geometry(name, part)
    if not (getattr(step, "keeps_positions", False) or callable(getattr(step, "with_geometry", None))):
        raise ValueError(
            f"Expected every part of `{name}` to have `with_geometry` or `keeps_positions = True`, but got "
            f"{shown(step)}: geometry is missing"
        )


def check_maps(step: Any, maps: Any, number: int) -> None:
    """Raise unless a step has returned a map for each of its images, or one for all."""
    if not isinstance(maps, Tensor) or maps.shape not in ((number, 2, 3), (2, 3)):
        given = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(
            f"Expected `with_geometry` of {shown(step)} to return maps ({number}, 2, 3) or (2, 3), but got {given}"
        )


def identity_maps(number: int, device: torch.device) -> Tensor:
    """Return maps ``(N, 2, 3)`` that keep all points; they share no memory."""
    return torch.eye(2, 3, device=device).repeat(number, 1, 1)


def scale_and_shift(scale: tuple[float, float], shift: tuple[float, float], device: torch.device) -> Tensor:
    """Return the map ``(2, 3)`` with ``x' = scale_x x + shift_x``, and likewise y; no copy from the host."""
    maps = torch.zeros(2, 3, device=device)
    for axis in range(2):
        maps[axis, axis].fill_(scale[axis])
        maps[axis, 2].fill_(shift[axis])
    return maps


def resized_crop_map(box: tuple[float, float, float, float], size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the map ``(2, 3)`` of a crop that is resized.

    Args:
        box: left, top, width and height of the crop in pixels, from the image's upper left corner.
        size: height and width of the view.
        device: the map's device.
    """
    left, top, width, height = box
    scale = size[1] / width, size[0] / height
    # between corners: x' = scale (x - left); a pixel's centre is 0.5 from its corner
    shift = tuple(factor * (0.5 - start) - 0.5 for factor, start in zip(scale, (left, top), strict=True))
    return scale_and_shift(scale, (shift[0], shift[1]), device)


def maps_of_theta(theta: Tensor, source: tuple[int, int], view: tuple[int, int]) -> Tensor:
    """Return the maps in pixels of ``batch_ops.warp``.

    Args:
        theta: ``(N, 2, 3)``, from positions in the view to positions in the image, both in [-1, 1].
        source: height and width of the images.
        view: height and width of the views.
    """
    # n = 2 / side x + 1 / side - 1 in the image, then theta^-1, then x' = side / 2 n + (side - 1) / 2 in the view
    height, width = source
    to_positions = scale_and_shift((2 / width, 2 / height), (1 / width - 1, 1 / height - 1), theta.device)
    height, width = view
    to_pixels = scale_and_shift((width / 2, height / 2), ((width - 1) / 2, (height - 1) / 2), theta.device)
    return compose_maps(to_pixels, compose_maps(invert_maps(theta), to_positions))
