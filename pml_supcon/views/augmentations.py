"""Random augmentations, and the fixed transform for evaluation.

On one CPU core a call with a batch is over 100 times faster per view than calls with single images at 8 x 8 pixels, and
about 20 times at 32 x 32. All randomness comes from torch's global generators: ``torch.manual_seed`` makes it
reproducible. It is the generator of the images' device, and of the CPU for the crop of a single image, the order of
jitters, the operations of policies and the choice of the images that a step changes. On a GPU no call waits for it.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from pml_supcon._checks import (
    check_bool,
    check_callable,
    check_choice,
    check_fraction,
    check_int,
    check_number,
    check_numbers,
)
from pml_supcon.views.image_transform import ImageTransform, Step, check_channels, check_range
from pml_supcon.views.policies import auto_augment, rand_augment
from pml_supcon.views.steps import (
    Affine,
    BrightnessAndContrast,
    ColourJitter,
    CropAndFlip,
    GaussianBlur,
    Jitter,
    Range,
    ResizeAndCrop,
    SmoothWarp,
)

Augmentation = Literal["none", "simclr", "simaugment", "autoaugment", "randaugment", "stacked_randaugment", "digits"]
#: The names that ``augmentation`` accepts.
AUGMENTATIONS = get_args(Augmentation)
Family = Literal["natural", "digits"]

SMALL = 64  # largest side of a small image: policies learnt on CIFAR or SVHN, weaker RandAugment, no blur below
FULL = 224  # the side for which the papers state widths in pixels
CROP: dict[str, Range] = {"natural": (0.2, 1.0), "digits": (0.6, 1.0)}
JITTER: dict[str, Jitter] = {"natural": (0.4, 0.4, 0.4, 0.1), "digits": (0.4, 0.4, 0.4, 0.0)}


def augmentation(
    name: str,
    image_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    family: Family = "natural",
) -> ImageTransform:
    """Return the augmentation of a name.

    | name | steps |
    | --- | --- |
    | ``none`` | no randomness: ``evaluation_transform`` |
    | ``simclr`` | crop, flip, colour jitter, grey: ``contrastive_augmentation`` (Chen et al. 2020) |
    | ``simaugment`` | the same, then a warp of half the images, then a blur of half (Khosla et al. 2020) |
    | ``autoaugment`` | crop, flip, a learnt pair of operations (Cubuk et al. 2019) |
    | ``randaugment`` | crop, flip, two of 14 operations (Cubuk et al. 2020) |
    | ``stacked_randaugment`` | crop, flip, RandAugment, colour jitter, grey (Tian et al. 2020) |
    | ``digits`` | ``digit_augmentation``: a small affine map, brightness, contrast |

    Strengths:

    - Warp: 4 x 4 control points, corners included, moved by normal vectors times a length drawn from
      [0, 0.1 side]; the authors use 23 pixels of 224.
    - Blur: deviations from [0.1, 2] pixels at 224, scaled to other sizes, in a kernel of about a tenth of the side. No
      blur below 64 pixels: at 32 the largest deviation would be 0.29 pixels, without effect, and SimCLR does not blur
      CIFAR images either.
    - AutoAugment: the policy learnt on CIFAR-10 for images up to 64 pixels, else on ImageNet; for digits on SVHN.
    - RandAugment: level 9 of 30 above 64 pixels, else level 5, because rounding to whole pixels strengthens it.

    Args:
        name: one of ``AUGMENTATIONS``.
        image_size: side of the output, >= 1.
        mean: channel means in [0, 1], 1 or 3 of them.
        std: channel deviations, > 0.
        family: "digits" for symbols without mirror symmetry, whose class a small crop may change: no flip, crops of at
            least 0.6 of the area in place of 0.2, no change of hue, SVHN's policy. No effect on ``none`` and
            ``digits``.

    Returns:
        A transform of a PIL image, one tensor image (C, H, W) or a batch (N, C, H, W), uint8 or float in [0, 1], with
        separate parameters for every image, to normalised float32. All randomness comes from torch's global generator.

    Raises:
        ValueError: If the name or the family is unknown, or an argument is out of range.

    Examples:
        >>> import torch
        >>> augment = augmentation("stacked_randaugment", 32, mean=[0.5] * 3, std=[0.25] * 3)
        >>> augment(torch.zeros(8, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([8, 3, 32, 32])
    """
    check_choice("name", name, AUGMENTATIONS)
    check_choice("family", family, get_args(Family))
    if name == "none":
        return evaluation_transform(image_size, mean=mean, std=std)
    check_channels(mean)
    check_int("image_size", image_size, low=1)
    if name == "digits":
        return digit_augmentation(image_size, mean=mean, std=std)
    crop, policy = CropAndFlip(image_size, CROP[family], flip=family == "natural"), None
    steps: list[Step] = [] if name in ("autoaugment", "randaugment") else [ColourJitter(JITTER[family])]
    if name == "simaugment":
        steps.append(SmoothWarp(0.5, 0.1))
        if image_size >= SMALL:
            steps.append(GaussianBlur(0.5, (0.1 * image_size / FULL, 2.0 * image_size / FULL), radius=image_size // 20))
    elif name == "autoaugment":
        learnt = "svhn" if family == "digits" else "cifar10" if image_size <= SMALL else "imagenet"
        policy = auto_augment(learnt, image_size)
    elif name != "simclr":
        policy = rand_augment(2, 5 if image_size <= SMALL else 9, image_size)
    return ImageTransform(image_size, mean, std, crop=crop, crop_one=crop.one, policy=policy, steps=steps)


def contrastive_augmentation(
    image_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    crop_scale: Range = (0.2, 1.0),
    crop_ratio: Range = (3 / 4, 4 / 3),
    flip: bool = True,
    jitter: Jitter = (0.4, 0.4, 0.4, 0.1),
    jitter_probability: float = 0.8,
    grey_probability: float = 0.2,
) -> ImageTransform:
    """Return SimCLR's augmentation for natural images, without blur (Chen et al. 2020, appendix A and B.9).

    A random crop resized to ``image_size``, a horizontal flip, colour jitter, conversion to grey. The operations are
    torchvision's, applied to all images of a batch at once (``batch_ops``); the order of the four jitters is drawn once
    for some tens of images (``image_transform.PART``) instead of once per image.

    Args:
        image_size: side of the output.
        mean: channel means in [0, 1], 1 or 3 of them.
        std: channel deviations, > 0.
        crop_scale: range of the crop's fraction of the area, in (0, 1].
        crop_ratio: range of the crop's width over its height, > 0.
        flip: flip half of the images horizontally.
        jitter: strengths of brightness, contrast, saturation (factors from [max(0, 1 - s), 1 + s]) and hue (fractions
            of the colour circle from [-s, s], s <= 0.5).
        jitter_probability: probability that an image is jittered.
        grey_probability: probability that an image becomes grey.

    Returns:
        The augmentation.

    Raises:
        ValueError: If a range or probability is out of bounds, or ``ImageTransform`` raises it.

    Examples:
        >>> import torch
        >>> augment = contrastive_augmentation(32, mean=[0.5] * 3, std=[0.25] * 3)
        >>> augment(torch.zeros(3, 40, 36, dtype=torch.uint8)).shape, augment(torch.zeros(8, 3, 32, 32)).shape
        (torch.Size([3, 32, 32]), torch.Size([8, 3, 32, 32]))
    """
    check_range("crop_scale", crop_scale, 0.0, 1.0)
    check_range("crop_ratio", crop_ratio, 0.0)
    for name, value in (("jitter_probability", jitter_probability), ("grey_probability", grey_probability)):
        check_fraction(name, value, zero=True, one=True)
    check_bool("flip", flip)
    check_numbers("jitter", jitter)
    if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
        raise ValueError(f"Expected `jitter` to be 4 strengths >= 0, the last at most 0.5, but got {jitter}")
    check_channels(mean)
    crop = CropAndFlip(image_size, crop_scale, crop_ratio, flip)
    colours = ColourJitter(jitter, jitter_probability, grey_probability)
    return ImageTransform(image_size, mean, std, crop=crop, crop_one=crop.one, steps=[colours])


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
    """Return an augmentation for small images without mirror symmetry: digits, letters, symbols.

    A random affine map (black outside the image) and random brightness and contrast.

    Args:
        image_size: side of the output.
        mean: channel means in [0, 1], 1 or 3 of them.
        std: channel deviations, > 0.
        rotation: largest angle, in degrees, >= 0.
        shift: largest shift in x and in y, as a fraction of the side, in [0, 1].
        scale: range of the scale factor, > 0.
        shear: largest shear along x, in degrees, in [0, 90).
        brightness: factors are uniform in [1 - brightness, 1 + brightness], in [0, 1].
        contrast: the same for contrast.

    Returns:
        The augmentation.

    Raises:
        ValueError: If a value is out of bounds, or ``ImageTransform`` raises it.

    Examples:
        >>> import torch
        >>> digit_augmentation(8, mean=[0.3], std=[0.4])(torch.zeros(16, 1, 8, 8, dtype=torch.uint8)).shape
        torch.Size([16, 1, 8, 8])
    """
    check_range("scale", scale, 0.0)
    bounds = {"rotation": (rotation, 180), "shift": (shift, 1), "shear": (shear, 89)}
    bounds |= {"brightness": (brightness, 1), "contrast": (contrast, 1)}
    for name, (value, most) in bounds.items():
        check_number(name, value, 0, most)
    check_channels(mean)
    affine = Affine(image_size, rotation, shift, scale, shear)
    return ImageTransform(image_size, mean, std, crop=affine, steps=[BrightnessAndContrast(brightness, contrast)])


def evaluation_transform(
    image_size: int, *, mean: Sequence[float], std: Sequence[float], change: Step | None = None
) -> ImageTransform:
    """Return the transform for evaluation: resize the shorter side to ``image_size``, crop the centre, normalise.

    A square image is not cropped; an image of this size is only normalised. A ``change``, such as a corruption, maps
    the uint8 images ``(N, C, image_size, image_size)`` of a batch before they are normalised.

    Examples:
        >>> import torch
        >>> evaluation_transform(8, mean=[0.5], std=[0.5])(torch.full((1, 8, 8), 255, dtype=torch.uint8)).unique()
        tensor([1.])
    """
    check_int("image_size", image_size, low=1)
    if change is not None:
        check_callable("change", change)
    return ImageTransform(image_size, mean, std, crop=ResizeAndCrop(image_size), policy=change)
