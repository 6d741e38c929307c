"""Augmentations by name, with strengths that fit the size of the images."""

import difflib
from collections.abc import Sequence
from typing import Literal, get_args

from pml_supcon.views.augment import contrastive_augmentation, digit_augmentation, evaluation_transform
from pml_supcon.views.image_transform import ImageTransform, Step, check_channels
from pml_supcon.views.policies import RandomOperations, auto_augment, rand_augment
from pml_supcon.views.steps import ColourJitter, CropAndFlip, GaussianBlur, Range, SmoothWarp

#: The names that `augmentation` knows.
AUGMENTATIONS = ("none", "simclr", "simaugment", "autoaugment", "randaugment", "stacked_randaugment", "digits")
Family = Literal["natural", "digits"]

SMALL = 64  # up to this side images are small: policies learnt on CIFAR or SVHN, weaker RandAugment, no blur below
FULL = 224  # the side for which the papers give widths in pixels
Jitter = tuple[float, float, float, float]
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
    """Make the augmentation of a name.

    | name | what happens to an image |
    | --- | --- |
    | `none` | nothing random: `evaluation_transform` |
    | `simclr` | crop, mirror, colour jitter, grey: `contrastive_augmentation` (Chen et al. 2020) |
    | `simaugment` | the same, then half of the images warped, then half blurred (Khosla et al. 2020) |
    | `autoaugment` | crop, mirror, a learnt pair of operations (Cubuk et al. 2019) |
    | `randaugment` | crop, mirror, two of 14 operations (Cubuk et al. 2020) |
    | `stacked_randaugment` | crop, mirror, RandAugment, colour jitter, grey (Tian et al. 2020) |
    | `digits` | `digit_augmentation`: a small affine map, brightness, contrast |

    Strengths:

    - Warp: 4 x 4 control points, corners included, moved by normal vectors times a length drawn from
      [0, 0.1 side], as the authors' 23 pixels of 224.
    - Blur: deviations from [0.1, 2] pixels at 224, in proportion at other sizes, in a kernel of about a tenth of the
      side. Below 64 pixels there is none: at 32 the widest deviation would be 0.29 pixels, which changes nothing,
      and SimCLR blurs no CIFAR images either.
    - AutoAugment: the policy learnt on CIFAR-10 for images up to 64 pixels, else ImageNet's; for digits SVHN's.
    - RandAugment: level 9 of 30 above 64 pixels, level 5 up to there, where rounding to whole pixels adds to it.

    Args:
        name: one of `AUGMENTATIONS`.
        image_size: side of the output, >= 1.
        mean: channel means in [0, 1], 1 or 3 of them.
        std: channel deviations, > 0.
        family: "digits" for symbols without mirror symmetry, whose class a hard crop may change: never mirrored, crops
            of at least 0.6 of the area in place of 0.2, hue left alone, SVHN's policy. No effect on `none` and
            `digits`.

    Returns:
        A transform that takes a PIL image, one tensor image (C, H, W) or a batch (N, C, H, W), uint8 or float in
        [0, 1], every image of a batch with parameters of its own, and gives normalised float32. All randomness is
        drawn from torch's global generator.

    Raises:
        ValueError: for an unknown name or family, and as `contrastive_augmentation` does.

    Examples:
        >>> import torch
        >>> augment = augmentation("stacked_randaugment", 32, mean=[0.5] * 3, std=[0.25] * 3)
        >>> augment(torch.zeros(8, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([8, 3, 32, 32])
    """
    if name not in AUGMENTATIONS:
        near = difflib.get_close_matches(str(name), AUGMENTATIONS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Expected argument `name` to be one of {', '.join(AUGMENTATIONS)}, but got {name!r}{hint}")
    if family not in get_args(Family):
        raise ValueError(f"Expected argument `family` to be 'natural' or 'digits', but got {family!r}")
    if name == "none":
        return evaluation_transform(image_size, mean=mean, std=std)
    check_channels(mean)
    if name == "digits":
        return digit_augmentation(image_size, mean=mean, std=std)
    flip = family == "natural"
    if name == "simclr":
        return contrastive_augmentation(
            image_size, mean=mean, std=std, crop_scale=CROP[family], flip=flip, jitter=JITTER[family]
        )
    crop, jitter = CropAndFlip(image_size, CROP[family], flip=flip), ColourJitter(JITTER[family])
    policy: RandomOperations | None = None
    steps: list[Step] = []
    if name == "simaugment":
        steps = [jitter, SmoothWarp(0.5, 0.1), *_blur(image_size)]
    elif name == "autoaugment":
        learnt = "svhn" if family == "digits" else "cifar10" if image_size <= SMALL else "imagenet"
        policy = auto_augment(learnt, image_size)
    else:
        policy = rand_augment(2, 5 if image_size <= SMALL else 9, image_size)
        steps = [jitter] if name == "stacked_randaugment" else []
    return ImageTransform(image_size, mean, std, crop=crop, crop_one=crop.one, policy=policy, steps=steps)


def _blur(side: int) -> tuple[GaussianBlur, ...]:
    if side < SMALL:
        return ()
    return (GaussianBlur(0.5, (0.1 * side / FULL, 2.0 * side / FULL), radius=side // 20),)
