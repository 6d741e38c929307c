"""Random image operations on a whole batch, with parameters of its own for every image.

torchvision's transforms cost hundreds of microseconds per image of 8 x 8 or 32 x 32, nearly all of it overhead. Here
one tensor operation serves the batch. Images are float (N, C, H, W) in [0, 1] on any device; C is 1 or 3 for the
operations on colour. Parameters are tensors (N,). Formulas are torchvision's, so that the two can be compared; they
are written without `where`, `stack` and other operations that are many times slower than a multiplication on a CPU.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601: how bright red, green and blue look


def uniform(like: Tensor, low: float, high: float, *size: int) -> Tensor:
    """Draw from [low, high) on the device of `like`, one value per image unless `size` says otherwise."""
    return torch.rand(*(size or (len(like),)), device=like.device) * (high - low) + low


def warp(images: Tensor, theta: Tensor, image_size: int) -> Tensor:
    """Sample the images bilinearly where the affine maps say; black outside.

    Args:
        images: (N, C, H, W). Sides above twice `image_size` are shrunk to that first, with antialiasing: up to a
            factor of two bilinear sampling sees every pixel.
        theta: (N, 2, 3), from output to input positions, both in [-1, 1] (see `torch.nn.functional.affine_grid`).
        image_size: side of the output.

    Returns:
        (N, C, image_size, image_size).
    """
    limit = 2 * image_size
    height, width = images.shape[-2:]
    if max(height, width) > limit:
        smaller = [min(height, limit), min(width, limit)]
        images = F.interpolate(images, size=smaller, mode="bilinear", antialias=True, align_corners=False)
    grid = affine_grid(theta, image_size)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def affine_grid(theta: Tensor, image_size: int) -> Tensor:
    """Positions (N, image_size, image_size, 2) of affine maps, as torch's `affine_grid`, without its matrix product."""
    centres = (2 * torch.arange(image_size, device=theta.device) + 1) / image_size - 1
    grid = theta.new_empty(len(theta), image_size, image_size, 2)
    for axis in range(2):
        along, across, shift = theta[:, axis].unsqueeze(-1).unbind(1)
        torch.add((along * centres).unsqueeze(1), (across * centres + shift).unsqueeze(2), out=grid[..., axis])
    return grid


def crop_theta(images: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Draw the maps of a random resized crop.

    The crop's share of the area is uniform in `scale`, its width over its height log-uniform in `ratio`; of ten draws
    the first that fits counts, and the whole image where none does. Its borders need not fall on pixels.

    Returns:
        (N, 2, 3), for `warp`.
    """
    height, width = images.shape[-2:]
    area = uniform(images, *scale, 10, len(images))
    aspect = uniform(images, math.log(ratio[0]), math.log(ratio[1]), 10, len(images)).exp()
    shares = torch.stack([(area * aspect * height / width).sqrt(), (area / aspect * width / height).sqrt()])
    fits = (shares <= 1).all(0)
    first = fits.byte().argmax(0)
    shares = shares.gather(1, first.expand(2, 1, -1)).squeeze(1)  # (2, N): of the width, of the height
    shares = torch.where(fits.any(0), shares, torch.ones_like(shares))
    centre = uniform(images, -1.0, 1.0, 2, len(images)) * (1 - shares)
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 1, 1] = shares
    theta[:, :, 2] = centre.T
    return theta


def affine_theta(
    images: Tensor, angle: Tensor, shift_x: Tensor, shift_y: Tensor, scale: Tensor, shear: Tensor
) -> Tensor:
    """Make the maps of: shear along x, enlarge, turn about the centre, shift.

    Args:
        images: (N, C, H, W); only its shape counts.
        angle: degrees, clockwise.
        shift_x: share of the width, to the right.
        shift_y: share of the height, down.
        scale: factor, > 1 enlarges.
        shear: degrees.

    Returns:
        (N, 2, 3), for `warp`.
    """
    height, width = images.shape[-2:]
    turn, slant = angle.deg2rad(), shear.deg2rad().tan()
    cos, sin = turn.cos() / scale, turn.sin() / scale
    # From output back to input in pixels: the inverses in the opposite order.
    rows = [[cos - slant * sin, sin + slant * cos], [-sin, cos]]
    rows[0][1] = rows[0][1] * (height / width)  # positions in [-1, 1] are not square where the image is not
    rows[1][0] = rows[1][0] * (width / height)
    linear = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=1)
    shift = 2 * torch.stack([shift_x, shift_y], dim=-1).unsqueeze(-1)
    return torch.cat([linear, -linear @ shift], dim=-1)


def grey(images: Tensor) -> Tensor:
    """Return the brightness (N, 1, H, W) of images with 1 or 3 channels."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    brightness: Tensor = red * _GREY_WEIGHTS[0]
    return brightness.add_(green, alpha=_GREY_WEIGHTS[1]).add_(blue, alpha=_GREY_WEIGHTS[2])


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return `factor` of the images and `1 - factor` of the other, clipped to [0, 1]; factors may exceed 1."""
    return torch.lerp(other, images, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black."""
    return (images * factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean brightness of each image."""
    return blend(images, grey(images.mean((2, 3), keepdim=True)), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image; no change for one channel."""
    return images if images.shape[1] == 1 else blend(images, grey(images), factor)


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue (of the HSV hexcone) by a part of the circle, in [-0.5, 0.5]; no change for one channel."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    inverse = chroma.clamp_min(1e-12).reciprocal_()  # a grey pixel has no hue, and whichever it gets is times 0 below
    is_red, is_green = ((channel - value).sign_().add_(1) for channel in (red, green))  # 1 where the largest, else 0
    hue = torch.lerp((red - green).mul_(inverse).add_(4), (blue - red).mul_(inverse).add_(2), is_green)
    hue = torch.lerp(hue, (green - blue).mul_(inverse), is_red).add_(
        6 * turns.view(-1, 1, 1)
    )  # in sixths of the circle
    hue.sub_((hue / 6).floor_(), alpha=6)
    turned = torch.empty_like(images)
    torch.addcmul(low, chroma, (hue - 3).abs_().sub_(1).clamp_(0, 1), out=turned[:, 0])
    torch.addcmul(low, chroma, (hue - 2).abs_().neg_().add_(2).clamp_(0, 1), out=turned[:, 1])
    torch.addcmul(low, chroma, (hue - 4).abs_().neg_().add_(2).clamp_(0, 1), out=turned[:, 2])
    return turned
