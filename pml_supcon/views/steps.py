"""Random steps of the augmentations: each draws parameters for every image of a batch and applies them.

A step maps float images (N, C, H, W) in [0, 1] to float images in [0, 1]; it may modify its input in place. Steps have
no state and no generator, so that they can be pickled for the workers of a loader. All but ``SmoothWarp``, which is
not affine, return their geometry; ``views.geometry`` describes how.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF

from pml_supcon._geometry import compose_maps
from pml_supcon._tensors import to_device
from pml_supcon.views import batch_ops as ops
from pml_supcon.views.geometry import maps_of_theta, resized_crop_map, scale_and_shift
from pml_supcon.views.image_transform import Step

Range = tuple[float, float]
Jitter = tuple[float, float, float, float]  # strengths of brightness, contrast, saturation and hue


@dataclass(frozen=True)
class CropAndFlip:
    """A random crop resized to a square, and a horizontal flip of half the images, in one interpolation."""

    image_size: int
    scale: Range = (0.2, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    flip: bool = True

    def __call__(self, images: Tensor) -> Tensor:
        """Draw the parameters and apply them."""
        return ops.warp(images, self._draw(images), self.image_size)

    def with_geometry(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the parameters and apply them; return the maps too."""
        return warp_with_geometry(images, self._draw(images), self.image_size)

    def _draw(self, images: Tensor) -> Tensor:
        theta = ops.crop_theta(images, self.scale, self.ratio)
        if self.flip:
            theta[:, :, 0] *= torch.where(ops.uniform(images, 0, 1) < 0.5, -1.0, 1.0).unsqueeze(1)
        return theta

    @property
    def one(self) -> "CropAndFlipOne":
        """The step for one image."""
        return CropAndFlipOne(self)


@dataclass(frozen=True)
class CropAndFlipOne:
    """A crop and flip of one image (C, H, W), uint8 or float, by torchvision, which crops before it resizes."""

    batch: CropAndFlip

    def __call__(self, image: Tensor) -> Tensor:
        """Draw the parameters and apply them."""
        return self._apply(image)[0]

    def with_geometry(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the parameters and apply them; return the map (2, 3) too."""
        view, (left, top, width, height), flipped = self._apply(image)
        side = self.batch.image_size
        own = resized_crop_map((left, top, width, height), (side, side), image.device)
        return view, compose_maps(scale_and_shift((-1, 1), (side - 1, 0), image.device), own) if flipped else own

    def _apply(self, image: Tensor) -> tuple[Tensor, tuple[int, int, int, int], bool]:
        """Return the view, the box of its crop (left, top, width, height), and True if it is flipped."""
        side = self.batch.image_size
        box = v2.RandomResizedCrop(side, self.batch.scale, self.batch.ratio, antialias=True).make_params([image])
        view: Tensor = VF.resized_crop(image, **box, size=[side, side], antialias=True)
        flipped = self.batch.flip and bool(torch.rand(()) < 0.5)
        return view.flip(-1) if flipped else view, (box["left"], box["top"], box["width"], box["height"]), flipped


@dataclass(frozen=True)
class ColourJitter:
    """Random brightness, contrast, saturation and hue of some images, in a random order per call; some become grey."""

    keeps_positions: ClassVar[bool] = True
    strengths: Jitter = (0.4, 0.4, 0.4, 0.1)
    probability: float = 0.8
    grey_probability: float = 0.2

    def __call__(self, images: Tensor) -> Tensor:
        """Draw the parameters and apply them."""
        images = apply_to_some(images, self.probability, self._jitter)
        return apply_to_some(images, self.grey_probability, lambda some: ops.grey(some).expand_as(some))

    def _jitter(self, images: Tensor) -> Tensor:
        adjustments = (ops.adjust_brightness, ops.adjust_contrast, ops.adjust_saturation)
        for index in torch.randperm(4).tolist():
            strength = self.strengths[index]
            if strength == 0:
                continue
            if index == 3:
                images = ops.adjust_hue(images, ops.uniform(images, -strength, strength))
            else:
                images = adjustments[index](images, ops.uniform(images, max(0.0, 1 - strength), 1 + strength))
        return images


@dataclass(frozen=True)
class SmoothWarp:
    """A warp of some images by a smooth random field of vectors, up to about ``largest`` times the side."""

    probability: float
    largest: float

    def __call__(self, images: Tensor) -> Tensor:
        """Draw the parameters and apply them."""
        return apply_to_some(images, self.probability, self._warp)

    def _warp(self, images: Tensor) -> Tensor:
        return ops.displace(images, ops.smooth_field(ops.random_control(images, self.largest), images.shape[-2:]))


@dataclass(frozen=True)
class GaussianBlur:
    """A Gaussian blur of some images, with deviations uniform in ``sigma``, in pixels."""

    keeps_positions: ClassVar[bool] = True
    probability: float
    sigma: Range
    radius: int

    def __call__(self, images: Tensor) -> Tensor:
        """Draw the parameters and apply them."""
        return apply_to_some(images, self.probability, self._blur)

    def _blur(self, images: Tensor) -> Tensor:
        return ops.gaussian_blur(images, ops.uniform(images, *self.sigma), self.radius)


@dataclass(frozen=True)
class Affine:
    """A random affine map: rotation, shift, scale and shear; see ``digit_augmentation``."""

    image_size: int
    rotation: float
    shift: float
    scale: Range
    shear: float

    def __call__(self, images: Tensor) -> Tensor:
        """Draw the parameters and apply them."""
        return ops.warp(images, self._draw(images), self.image_size)

    def with_geometry(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the parameters and apply them; return the maps too."""
        return warp_with_geometry(images, self._draw(images), self.image_size)

    def _draw(self, images: Tensor) -> Tensor:
        return ops.affine_theta(
            images,
            angle=ops.uniform(images, -self.rotation, self.rotation),
            shift_x=ops.uniform(images, -self.shift, self.shift),
            shift_y=ops.uniform(images, -self.shift, self.shift),
            scale=ops.uniform(images, *self.scale),
            shear=ops.uniform(images, -self.shear, self.shear),
        )


@dataclass(frozen=True)
class BrightnessAndContrast:
    """Random factors of brightness, then of contrast, within ``1 - x`` and ``1 + x``."""

    keeps_positions: ClassVar[bool] = True
    brightness: float
    contrast: float

    def __call__(self, images: Tensor) -> Tensor:
        """Draw the parameters and apply them."""
        images = ops.adjust_brightness(images, ops.uniform(images, 1 - self.brightness, 1 + self.brightness))
        return ops.adjust_contrast(images, ops.uniform(images, 1 - self.contrast, 1 + self.contrast))


def apply_to_some(images: Tensor, probability: float, step: Step) -> Tensor:
    """Apply a step to each image with a probability, in place."""
    # drawn on the CPU: their number is the shape of what follows, and reading it from a GPU would wait for the device
    chosen = (torch.rand(len(images), device="cpu") < probability).nonzero().squeeze(1)
    if len(chosen) == 0:
        return images
    chosen = to_device(chosen, images.device)
    return images.index_copy_(0, chosen, step(images[chosen]))


def warp_with_geometry(images: Tensor, theta: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
    """Return ``batch_ops.warp`` of the images and its maps in pixels, (N, 2, 3)."""
    height, width = images.shape[-2:]
    return ops.warp(images, theta, image_size), maps_of_theta(theta, (height, width), (image_size, image_size))


@dataclass(frozen=True)
class ResizeAndCrop:
    """The shorter side resized to ``image_size``, then the centre cropped; no randomness."""

    image_size: int

    def __call__(self, images: Tensor) -> Tensor:
        """Resize and crop."""
        if images.shape[-2:] == (self.image_size, self.image_size):
            return images
        resized: Tensor = VF.resize(images, [self.image_size], antialias=True)
        cropped: Tensor = VF.center_crop(resized, [self.image_size])
        return cropped

    def with_geometry(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Resize and crop; return the map (2, 3) too."""
        (height, width), side = images.shape[-2:], self.image_size
        # torchvision cuts the longer side to whole pixels, and rounds the borders of the crop
        longer = int(side * max(height, width) / min(height, width))
        resized = (side, longer) if height <= width else (longer, side)
        top, left = (round((length - side) / 2) for length in resized)
        own = resized_crop_map((0, 0, width, height), resized, images.device)
        return self(images), compose_maps(scale_and_shift((1, 1), (-left, -top), images.device), own)
