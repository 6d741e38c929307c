"""The common base of the augmentations: any kind of image in, normalised float images out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from pml_supcon._checks import check_callable, check_int, check_numbers, check_type
from pml_supcon._geometry import compose_maps
from pml_supcon._tensors import check_dense, to_device
from pml_supcon.views.geometry import check_geometry, check_maps, identity_maps

Step = Callable[[Tensor], Tensor]  # images (N, C, H, W) to images; may modify its input in place

PART = 2**18  # values in a part: with a few copies it fits a core's cache, twice as fast at 32 x 32


class ImageTransform:
    """A transform that crops images to a square, augments them and normalises them.

    Args:
        image_size: side of the output, >= 1.
        mean: channel means in [0, 1], one per channel of the images.
        std: channel deviations, > 0.
        crop: maps float images (N, C, H, W) in [0, 1], N >= 1, to float images of side ``image_size``.
        crop_one: crops one image (C, H, W), uint8 or float, and keeps its dtype: a large image is not converted to
            float as a whole. None uses ``crop``.
        policy: maps the cropped uint8 images (N, C, image_size, image_size) of the whole batch to uint8 images.
        steps: map float images (N, C, image_size, image_size) in [0, 1] to the same, in order. On a CPU ``crop`` and
            ``steps`` process a batch in parts that fit a core's cache. ``with_geometry`` needs parts with a
            method ``with_geometry`` or ``keeps_positions = True``: all steps of ``views.steps`` but ``SmoothWarp``.

    Raises:
        ValueError: If ``image_size`` is below 1, ``mean`` and ``std`` differ in length or are empty, a deviation is not
            positive, or images have another shape or number of channels.
        TypeError: If an input is neither a PIL image nor a uint8 or float tensor.
    """

    def __init__(
        self,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        crop: Step,
        crop_one: Step | None = None,
        policy: Step | None = None,
        steps: Sequence[Step] = (),
    ) -> None:
        check_int("image_size", image_size, low=1)
        check_numbers("mean", mean)
        check_numbers("std", std)
        if not mean or len(mean) != len(std):
            raise ValueError(
                f"Expected `mean` and `std` to have one entry per channel, but got {len(mean)} and {len(std)} entries"
            )
        if min(std) <= 0:
            raise ValueError(f"Expected every entry of `std` to be positive, but got {tuple(std)}")
        check_callable("crop", crop)
        for name, step in (("crop_one", crop_one), ("policy", policy)):
            if step is not None:
                check_callable(name, step)
        check_type("steps", steps, (list, tuple), "a list or tuple of functions")
        for step in steps:
            check_callable("steps", step)
        self.parts = tuple(part for part in (crop, crop_one, policy, *steps) if part is not None)
        self.image_size, self.mean, self.std = image_size, tuple(mean), tuple(std)
        self._crop_one, self._policy = crop_one, policy
        self._finish = InParts((*steps, Normalise(self.mean, self.std)), image_size)
        self._bytes = InParts((crop, to_bytes), image_size)
        self._all = InParts((crop, *self._finish.steps), image_size)

    def __call__(self, images: Any) -> Tensor:
        """Transform one image or a batch."""
        return self._transform(self._checked(images))

    def with_geometry(self, images: Any) -> tuple[Tensor, Tensor]:
        """Transform one image or a batch, with the draws of a plain call, and return the maps to its views.

        Args:
            images: as in a plain call.

        Returns:
            The result of a plain call, and the map from each image to its view (see ``map_points``): ``(N, 2, 3)`` for
            a batch, ``(2, 3)`` for one image, float32.

        Raises:
            ValueError: If the geometry of a part is missing: it has neither ``with_geometry``, as ``CropAndFlip`` has,
                nor ``keeps_positions = True``, as ``ColourJitter`` has.
        """
        check_geometry("transform", self)
        images = self._checked(images)
        maps = identity_maps(len(images) if images.ndim == 4 else 1, images.device)
        return self._transform(images, maps), maps if images.ndim == 4 else maps[0]

    def _checked(self, images: Any) -> Tensor:
        if isinstance(images, Image.Image):
            images = VF.pil_to_tensor(images.convert("L" if len(self.mean) == 1 else "RGB"))
        if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"Expected argument `images` to be a PIL image or a uint8 or float tensor, but got {kind}")
        check_dense("images", images)
        if images.ndim not in (3, 4) or images.shape[-3] != len(self.mean):
            raise ValueError(
                f"Expected argument `images` of shape (C, H, W) or (N, C, H, W) with C={len(self.mean)} (one entry of "
                f"`mean` per channel), but got {tuple(images.shape)}"
            )
        return images

    def _transform(self, images: Tensor, maps: Tensor | None = None) -> Tensor:
        """Return the views; compose ``maps`` (N, 2, 3), where given, with the maps of the steps, in place."""
        if len(images) == 0:  # torch's sampling grids reject an empty batch
            return torch.empty(0, len(self.mean), self.image_size, self.image_size, device=images.device)
        if images.ndim == 3 and self._crop_one is not None:
            cropped = apply_step(self._crop_one, images, maps).unsqueeze(0)
            if self._policy is not None:
                cropped = cropped if cropped.dtype == torch.uint8 else to_bytes(cropped)
                cropped = apply_step(self._policy, cropped, maps)
            return self._finish(cropped, maps).squeeze(0)
        if images.ndim == 3:
            return self._transform(images.unsqueeze(0), maps).squeeze(0)
        if self._policy is None:
            return self._all(images, maps)
        return self._finish(apply_step(self._policy, self._bytes(images, maps), maps), maps)


def apply_step(step: Any, images: Tensor, maps: Tensor | None) -> Tensor:
    """Apply a step; compose ``maps`` (N, 2, 3), where given, with the step's own maps, in place."""
    if maps is None or getattr(step, "keeps_positions", False):
        changed: Tensor = step(images)
        return changed
    changed, own = step.with_geometry(images)
    check_maps(step, own, len(maps))
    maps.copy_(compose_maps(own, maps))
    return changed


@dataclass(frozen=True)
class Normalise:
    """A step that subtracts the channel means and divides by the channel deviations."""

    keeps_positions: ClassVar[bool] = True
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise float images (N, C, H, W)."""
        offset, factor = offset_and_factor(self.mean, self.std, images.device, images.dtype)
        return torch.addcmul(offset, images, factor)


@lru_cache(maxsize=64)
def offset_and_factor(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return ``-mean / std`` and ``1 / std`` (C, 1, 1), kept on the device: a copy at each call would wait for it."""
    with torch.inference_mode(mode=False):  # tensors of inference mode are of no use outside it
        means, stds = (torch.tensor(values, dtype=dtype, device="cpu").view(-1, 1, 1) for values in (mean, std))
        return to_device(-means / stds, device), to_device(1 / stds, device)


@dataclass(frozen=True)
class InParts:
    """A sequence of steps, on a CPU for one part of the batch at a time; images are converted to float first."""

    steps: tuple[Step, ...]
    image_size: int

    def __call__(self, images: Tensor, maps: Tensor | None = None) -> Tensor:
        """Return new images; compose ``maps`` (N, 2, 3), where given, with the maps of the steps, in place.

        The images (N, C, H, W), uint8 or float, N >= 1, are not modified.
        """
        values = images.shape[1] * self.image_size**2
        size = max(1, PART // values) if images.device.type == "cpu" else len(images)
        if size >= len(images):
            return self._part(images, maps)
        first = self._part(images[:size], None if maps is None else maps[:size])
        output = first.new_empty(len(images), *first.shape[1:])
        output[:size] = first
        for start in range(size, len(images), size):
            rows = slice(start, start + size)
            output[rows] = self._part(images[rows], None if maps is None else maps[rows])
        return output

    def _part(self, images: Tensor, maps: Tensor | None) -> Tensor:
        images = to_float(images)
        for step in self.steps:
            images = apply_step(step, images, maps)
            if not isinstance(images, Tensor) or images.ndim != 4:
                given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
                raise ValueError(f"Expected `crop` and `steps` to return images (N, C, H, W), but got {given}")
        return images


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 in 0..255, or floats in [0, 1], to float32 in [0, 1]; always a copy."""
    copy = images.to(torch.float32, copy=True)
    return copy.div_(255) if images.dtype == torch.uint8 else copy


def to_bytes(images: Tensor) -> Tensor:
    """Convert floats in [0, 1] to uint8 in 0..255, rounded."""
    return (images * 255).round_().byte()


to_bytes.keeps_positions = True  # type: ignore[attr-defined]  # a step of `InParts`


def check_range(name: str, bounds: tuple[float, float], above: float, most: float = float("inf")) -> None:
    """Raise unless the bounds are an increasing pair in (above, most]."""
    check_numbers(name, bounds)
    if len(bounds) != 2 or not above < bounds[0] <= bounds[1] <= most:
        raise ValueError(f"Expected `{name}` to be an increasing pair in ({above}, {most}], but got {bounds}")


def check_channels(mean: Sequence[float]) -> None:
    """Raise unless the mean has one or three channels."""
    check_numbers("mean", mean)
    if len(mean) not in (1, 3):
        raise ValueError(f"Expected `mean` to have 1 or 3 entries, but got {len(mean)}")
