"""Random steps of the augmentations: each draws parameters for every image of a batch and applies them.

A step maps float images (N, C, H, W) in [0, 1] to float images in [0, 1]; it may modify its input in place. Steps have
no state and no generator, so that they can be pickled for the workers of a loader.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

from pml_supcon._tensors import to_device
from pml_supcon.views import batch_ops as ops
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
        theta = ops.crop_theta(images, self.scale, self.ratio)
        if self.flip:
            theta[:, :, 0] *= torch.where(ops.uniform(images, 0, 1) < 0.5, -1.0, 1.0).unsqueeze(1)
        return ops.warp(images, theta, self.image_size)

    def one(self, image: Tensor) -> Tensor:
        """Crop and flip one image (C, H, W), uint8 or float, by torchvision, which crops before it resizes."""
        crop = v2.RandomResizedCrop(self.image_size, self.scale, self.ratio, antialias=True)
        cropped: Tensor = crop(image)
        return cropped.flip(-1) if self.flip and torch.rand(()) < 0.5 else cropped


@dataclass(frozen=True)
class ColourJitter:
    """Random brightness, contrast, saturation and hue of some images, in a random order per call; some become grey."""

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
        theta = ops.affine_theta(
            images,
            angle=ops.uniform(images, -self.rotation, self.rotation),
            shift_x=ops.uniform(images, -self.shift, self.shift),
            shift_y=ops.uniform(images, -self.shift, self.shift),
            scale=ops.uniform(images, *self.scale),
            shear=ops.uniform(images, -self.shear, self.shear),
        )
        return ops.warp(images, theta, self.image_size)


@dataclass(frozen=True)
class BrightnessAndContrast:
    """Random factors of brightness, then of contrast, within ``1 - x`` and ``1 + x``."""

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
