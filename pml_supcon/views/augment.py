"""Random augmentations that make the views of a sample, and the fixed transform for evaluation.

What the factories return takes

- a PIL image, or one image (C, H, W), uint8 in 0..255 or float in [0, 1], and gives (C, image_size, image_size);
- a batch (N, C, H, W) of such tensors, and gives (N, C, image_size, image_size), every image with random parameters of
  its own. On one CPU core this is over 100 times faster per view at 8 x 8 and about 20 times at 32 x 32.
  `MultiView(augmentation, V)(batch).flatten(0, 1)` are the `V * N` rows of a batch of views, view by view.

The output is float32, normalised with `mean` and `std`. All randomness comes from torch's global generators (of the
images' device, and of the CPU for the crop of a single image and the order of jitters), so `torch.manual_seed` governs
it.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from pml_supcon.views.image_transform import ImageTransform, Step, check_channels, check_range
from pml_supcon.views.steps import Affine, BrightnessAndContrast, ColourJitter, CropAndFlip, Range


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

    A random crop resized to `image_size`, a horizontal flip, colour jitter, now and then grey. The operations are
    torchvision's, on all images of a batch at once (`batch_ops`), where the order of the four jitters is drawn once for
    some tens of images (`image_transform.PART`) instead of once per image.

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

    Examples:
        >>> import torch
        >>> augment = contrastive_augmentation(32, mean=[0.5] * 3, std=[0.25] * 3)
        >>> augment(torch.zeros(3, 40, 36, dtype=torch.uint8)).shape, augment(torch.zeros(8, 3, 32, 32)).shape
        (torch.Size([3, 32, 32]), torch.Size([8, 3, 32, 32]))
    """
    check_range("crop_scale", crop_scale, 0.0, 1.0)
    check_range("crop_ratio", crop_ratio, 0.0)
    for name, value in (("jitter_probability", jitter_probability), ("grey_probability", grey_probability)):
        if not 0 <= value <= 1:
            raise ValueError(f"Expected argument `{name}` to be in [0, 1], but got {value}")
    if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
        raise ValueError(f"Expected `jitter` to be 4 strengths >= 0, the last at most 0.5, but got {jitter}")
    check_channels(mean)
    crop = CropAndFlip(image_size, crop_scale, crop_ratio, flip)
    steps = [ColourJitter(jitter, jitter_probability, grey_probability)]
    return ImageTransform(image_size, mean, std, crop=crop, crop_one=crop.one, steps=steps)


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

    Examples:
        >>> import torch
        >>> digit_augmentation(8, mean=[0.3], std=[0.4])(torch.zeros(16, 1, 8, 8, dtype=torch.uint8)).shape
        torch.Size([16, 1, 8, 8])
    """
    check_range("scale", scale, 0.0)
    bounds = {"rotation": (rotation, 180), "shift": (shift, 1), "shear": (shear, 89)}
    bounds |= {"brightness": (brightness, 1), "contrast": (contrast, 1)}
    for name, (value, most) in bounds.items():
        if not 0 <= value <= most:
            raise ValueError(f"Expected argument `{name}` to be in [0, {most}], but got {value}")
    check_channels(mean)
    affine = Affine(image_size, rotation, shift, scale, shear)
    return ImageTransform(image_size, mean, std, crop=affine, steps=[BrightnessAndContrast(brightness, contrast)])


def evaluation_transform(
    image_size: int, *, mean: Sequence[float], std: Sequence[float], change: Step | None = None
) -> ImageTransform:
    """Make the transform for evaluation: the shorter side resized to `image_size`, the centre square, normalised.

    Nothing is cropped away from a square image; one that has this size already is only normalised. A `change`, such as
    a corruption, is given the uint8 squares `(N, C, image_size, image_size)` of a batch, before they are normalised.

    Examples:
        >>> import torch
        >>> evaluation_transform(8, mean=[0.5], std=[0.5])(torch.full((1, 8, 8), 255, dtype=torch.uint8)).unique()
        tensor([1.])
    """
    return ImageTransform(image_size, mean, std, crop=partial(_resize_and_crop, image_size=image_size), policy=change)


def _resize_and_crop(images: Tensor, *, image_size: int) -> Tensor:
    if images.shape[-2:] == (image_size, image_size):
        return images
    resized: Tensor = VF.resize(images, [image_size], antialias=True)
    cropped: Tensor = VF.center_crop(resized, [image_size])
    return cropped
