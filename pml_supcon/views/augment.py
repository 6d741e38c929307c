"""Random augmentations that make the views of a sample, and the fixed transform for evaluation.

What the factories return takes

- a PIL image, or one image (C, H, W), uint8 in 0..255 or float in [0, 1], and gives (C, image_size, image_size);
- a batch (N, C, H, W) of such tensors, and gives (N, C, image_size, image_size), every image with random parameters of
  its own. On one CPU core this is about 70 times faster per view at 8 x 8 and 7 times at 32 x 32.
  `MultiView(augmentation, V)(batch).flatten(0, 1)` are the `V * N` rows of a batch of views, view by view.

The output is float32, normalised with `mean` and `std`. All randomness comes from torch's global generator (the one of
the images' device), so `torch.manual_seed` governs it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF

from pml_supcon.views import batch_ops as ops

Range = tuple[float, float]


class ImageTransform:
    """Convert images to float, change them, normalise them; what the factories below return.

    Args:
        image_size: side of the output, >= 1.
        mean: channel means in [0, 1], one per channel of the images.
        std: channel deviations, > 0.
        batch: from float images (N, C, H, W) in [0, 1] to float images (N, C, image_size, image_size).
        single: the same for one image (C, H, W); None uses `batch` on a batch of one.

    Raises:
        ValueError: for an `image_size` below 1, `mean` and `std` of different or no length, a deviation that is not
            positive; when called, for images of another shape or number of channels.
        TypeError: when called, for anything but a PIL image or a uint8 or float tensor.
    """

    def __init__(
        self,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        batch: Callable[[Tensor], Tensor],
        single: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if image_size < 1:
            raise ValueError(f"Expected argument `image_size` to be at least 1, but got {image_size}")
        if not mean or len(mean) != len(std):
            raise ValueError(
                f"Expected `mean` and `std` to have one entry per channel, but got {len(mean)} and {len(std)} entries"
            )
        if min(std) <= 0:
            raise ValueError(f"Expected every entry of `std` to be positive, but got {tuple(std)}")
        self.image_size, self.mean, self.std = image_size, tuple(mean), tuple(std)
        self._batch, self._single = batch, single

    def __call__(self, images: Any) -> Tensor:
        """Transform one image or a batch."""
        if isinstance(images, Image.Image):
            images = VF.pil_to_tensor(images.convert("L" if len(self.mean) == 1 else "RGB"))
        if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"Expected a PIL image or a uint8 or float tensor, but got {kind}")
        if images.ndim not in (3, 4) or images.shape[-3] != len(self.mean):
            raise ValueError(
                f"Expected images of shape (C, H, W) or (N, C, H, W) with C={len(self.mean)} (one entry of `mean` per "
                f"channel), but got {tuple(images.shape)}"
            )
        if len(images) == 0:  # an empty batch, which torch's sampling grids refuse
            return torch.empty(0, len(self.mean), self.image_size, self.image_size, device=images.device)
        if images.ndim == 4:
            changed = self._batch(_to_float(images))
        elif self._single is not None:
            changed = _to_float(self._single(images))
        else:
            changed = self._batch(_to_float(images.unsqueeze(0))).squeeze(0)
        mean, std = (changed.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (changed - mean) / std


def contrastive_augmentation(
    image_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    crop_scale: Range = (0.2, 1.0),
    crop_ratio: Range = (3 / 4, 4 / 3),
    flip: bool = True,
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
    jitter_probability: float = 0.8,
    grey_probability: float = 0.2,
) -> ImageTransform:
    """Make SimCLR's augmentation for natural images, without blur (Chen et al. 2020, appendix A and B.9).

    A random crop resized to `image_size`, a horizontal flip, colour jitter, now and then grey. One image goes through
    torchvision's transforms; a batch through the same operations on all its images at once (`batch_ops`), where the
    order of the four jitters is drawn once per batch instead of once per image.

    Args:
        image_size: side of the output.
        mean: channel means in [0, 1], 1 or 3 of them.
        std: channel deviations, > 0.
        crop_scale: range of the crop's share of the area, in (0, 1].
        crop_ratio: range of the crop's width over its height, > 0.
        flip: mirror half of the images.
        jitter: strengths of brightness, contrast, saturation (factors from [max(0, 1 - s), 1 + s]) and hue (parts of
            the colour circle from [-s, s], s <= 0.5).
        jitter_probability: share of the images that are jittered.
        grey_probability: share of the images that become grey.

    Returns:
        The augmentation.

    Raises:
        ValueError: for a range or probability outside its bounds, and as `ImageTransform` does.

    Example:
        >>> augment = contrastive_augmentation(32, mean=[0.5] * 3, std=[0.25] * 3)
        >>> augment(torch.zeros(3, 40, 36, dtype=torch.uint8)).shape, augment(torch.zeros(8, 3, 32, 32)).shape
        (torch.Size([3, 32, 32]), torch.Size([8, 3, 32, 32]))
    """
    _check_range("crop_scale", crop_scale, 0.0, 1.0)
    _check_range("crop_ratio", crop_ratio, 0.0)
    for name, value in (("jitter_probability", jitter_probability), ("grey_probability", grey_probability)):
        if not 0 <= value <= 1:
            raise ValueError(f"Expected argument `{name}` to be in [0, 1], but got {value}")
    if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
        raise ValueError(f"Expected `jitter` to be 4 strengths >= 0, the last at most 0.5, but got {jitter}")
    if len(mean) not in (1, 3):
        raise ValueError(f"Expected `mean` to have 1 or 3 entries, but got {len(mean)}")
    single: list[Any] = [v2.RandomResizedCrop(image_size, crop_scale, crop_ratio, antialias=True)]
    if flip:
        single.append(v2.RandomHorizontalFlip())
    single.append(v2.RandomApply([v2.ColorJitter(*jitter)], jitter_probability))
    single.append(v2.RandomGrayscale(grey_probability))
    batch = partial(
        _natural_batch,
        image_size=image_size,
        crop=(crop_scale, crop_ratio),
        flip=flip,
        jitter=jitter,
        jitter_probability=jitter_probability,
        grey_probability=grey_probability,
    )
    return ImageTransform(image_size, mean, std, batch=batch, single=v2.Compose(single))


def digit_augmentation(
    image_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    rotation: float = 15.0,
    shift: float = 0.1,
    scale: Range = (0.85, 1.15),
    shear: float = 10.0,
    brightness: float = 0.3,
    contrast: float = 0.3,
) -> ImageTransform:
    """Make an augmentation for small images without mirror symmetry: digits, letters, symbols.

    A random affine map (black outside the image) and a change of brightness and contrast. One image goes through the
    batch's code as a batch of one.

    Args:
        image_size: side of the output.
        mean: channel means in [0, 1], 1 or 3 of them.
        std: channel deviations, > 0.
        rotation: largest angle, in degrees, >= 0.
        shift: largest shift in x and in y, as a share of the side, in [0, 1].
        scale: range of the enlargement, > 0.
        shear: largest shear along x, in degrees, in [0, 90).
        brightness: factors come from [1 - brightness, 1 + brightness], in [0, 1].
        contrast: the same for contrast.

    Returns:
        The augmentation.

    Raises:
        ValueError: for a value outside its bounds, and as `ImageTransform` does.

    Example:
        >>> digit_augmentation(8, mean=[0.3], std=[0.4])(torch.zeros(16, 1, 8, 8, dtype=torch.uint8)).shape
        torch.Size([16, 1, 8, 8])
    """
    _check_range("scale", scale, 0.0)
    bounds = {"rotation": (rotation, 180), "shift": (shift, 1), "shear": (shear, 89)}
    bounds |= {"brightness": (brightness, 1), "contrast": (contrast, 1)}
    for name, (value, most) in bounds.items():
        if not 0 <= value <= most:
            raise ValueError(f"Expected argument `{name}` to be in [0, {most}], but got {value}")
    if len(mean) not in (1, 3):
        raise ValueError(f"Expected `mean` to have 1 or 3 entries, but got {len(mean)}")
    batch = partial(
        _digit_batch,
        image_size=image_size,
        rotation=rotation,
        shift=shift,
        scale=scale,
        shear=shear,
        brightness=brightness,
        contrast=contrast,
    )
    return ImageTransform(image_size, mean, std, batch=batch)


def evaluation_transform(image_size: int, *, mean: Sequence[float], std: Sequence[float]) -> ImageTransform:
    """Make the transform for evaluation: the shorter side resized to `image_size`, the centre square, normalised.

    Nothing is cropped away from a square image; one that has this size already is only normalised.

    Example:
        >>> evaluation_transform(8, mean=[0.5], std=[0.5])(torch.full((1, 8, 8), 255, dtype=torch.uint8)).unique()
        tensor([1.])
    """
    return ImageTransform(image_size, mean, std, batch=partial(_resize_and_crop, image_size=image_size))


def _to_float(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _natural_batch(
    images: Tensor,
    *,
    image_size: int,
    crop: tuple[Range, Range],
    flip: bool,
    jitter: tuple[float, float, float, float],
    jitter_probability: float,
    grey_probability: float,
) -> Tensor:
    theta = ops.crop_theta(images, *crop)
    if flip:
        theta[:, :, 0] *= torch.where(ops.uniform(images, 0, 1) < 0.5, -1.0, 1.0).unsqueeze(1)
    images = ops.warp(images, theta, image_size)
    jittered = ops.uniform(images, 0, 1) < jitter_probability
    adjustments = (ops.adjust_brightness, ops.adjust_contrast, ops.adjust_saturation)
    for index in torch.randperm(4).tolist():
        strength = jitter[index]
        if strength == 0:
            continue
        if index == 3:
            images = ops.adjust_hue(images, ops.uniform(images, -strength, strength) * jittered)
        else:
            factor = ops.uniform(images, max(0.0, 1 - strength), 1 + strength)
            images = adjustments[index](images, torch.where(jittered, factor, torch.ones_like(factor)))
    turn_grey = (ops.uniform(images, 0, 1) < grey_probability).view(-1, 1, 1, 1)
    return torch.where(turn_grey, ops.grey(images), images)


def _digit_batch(
    images: Tensor,
    *,
    image_size: int,
    rotation: float,
    shift: float,
    scale: Range,
    shear: float,
    brightness: float,
    contrast: float,
) -> Tensor:
    theta = ops.affine_theta(
        images,
        angle=ops.uniform(images, -rotation, rotation),
        shift_x=ops.uniform(images, -shift, shift),
        shift_y=ops.uniform(images, -shift, shift),
        scale=ops.uniform(images, *scale),
        shear=ops.uniform(images, -shear, shear),
    )
    images = ops.warp(images, theta, image_size)
    images = ops.adjust_brightness(images, ops.uniform(images, 1 - brightness, 1 + brightness))
    return ops.adjust_contrast(images, ops.uniform(images, 1 - contrast, 1 + contrast))


def _resize_and_crop(images: Tensor, *, image_size: int) -> Tensor:
    if images.shape[-2:] == (image_size, image_size):
        return images
    resized: Tensor = VF.resize(images, [image_size], antialias=True)
    cropped: Tensor = VF.center_crop(resized, [image_size])
    return cropped


def _check_range(name: str, bounds: Range, above: float, most: float = float("inf")) -> None:
    if len(bounds) != 2 or not above < bounds[0] <= bounds[1] <= most:
        raise ValueError(f"Expected `{name}` to be an increasing pair in ({above}, {most}], but got {bounds}")
