"""Image operations on a whole batch, with separate parameters for every image.

torchvision's transforms take hundreds of microseconds per image of 8 x 8 or 32 x 32, nearly all of it overhead; here
one tensor operation processes the batch. Images are float (N, C, H, W) in [0, 1] on any device; C is 1 or 3 for the
operations on colour. Parameters are tensors (N,). Formulas are torchvision's, so that the tests can compare them. They
avoid ``where``, ``stack`` and other operations that are many times slower than a multiplication on a CPU.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601 luma weights of red, green and blue
CONTROL_POINTS = 4  # control points of a smooth field along one side, corners included


def uniform(like: Tensor, low: float, high: float, *size: int) -> Tensor:
    """Draw from [low, high) on the device of ``like``: one value per image, or a tensor of shape ``size``."""
    return torch.rand(*(size or (len(like),)), device=like.device) * (high - low) + low


def warp(images: Tensor, theta: Tensor, image_size: int) -> Tensor:
    """Apply affine maps to the images by bilinear interpolation; black outside.

    Args:
        images: (N, C, H, W). Sides above twice ``image_size`` are first resized to that with antialiasing: up to a
            factor of two bilinear interpolation uses every pixel.
        theta: (N, 2, 3), from output to input positions, both in [-1, 1] (see ``torch.nn.functional.affine_grid``).
        image_size: side of the output.

    Returns:
        (N, C, image_size, image_size).
    """
    limit = 2 * image_size
    height, width = images.shape[-2:]
    if max(height, width) > limit:
        smaller = [min(height, limit), min(width, limit)]
        images = F.interpolate(images, size=smaller, mode="bilinear", antialias=True, align_corners=False)
    grid = affine_grid(theta, image_size, image_size)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def affine_grid(theta: Tensor, height: int, width: int) -> Tensor:
    """Return the grid (N, height, width, 2) of torch's ``affine_grid``, without its matrix product."""
    x, y = ((2 * torch.arange(side, device=theta.device) + 1) / side - 1 for side in (width, height))
    # grid[n, i, j, axis] = theta[n, axis] @ (x[j], y[i], 1), as an outer sum
    grid = theta.new_empty(len(theta), height, width, 2)
    for axis in range(2):
        along, across, shift = theta[:, axis].unsqueeze(-1).unbind(1)
        torch.add((along * x).unsqueeze(1), (across * y + shift).unsqueeze(2), out=grid[..., axis])
    return grid


def crop_theta(images: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Draw the maps of a random resized crop.

    The crop's fraction of the area is uniform in ``scale``, its width over its height log-uniform in ``ratio``. Of ten
    draws the first that fits is used, else the whole image. Its borders need not coincide with pixel borders.

    Returns:
        (N, 2, 3), for ``warp``.
    """
    height, width = images.shape[-2:]
    # Ten draws per image, (10, N); sides of the crop as fractions of the image's sides, (2, 10, N).
    area = uniform(images, *scale, 10, len(images))
    aspect = uniform(images, math.log(ratio[0]), math.log(ratio[1]), 10, len(images)).exp()
    fractions = torch.stack([(area * aspect * height / width).sqrt(), (area / aspect * width / height).sqrt()])
    # The first draw that fits; (2, N): fractions of the width and of the height.
    fits = (fractions <= 1).all(0)
    first = fits.byte().argmax(0)
    fractions = fractions.gather(1, first.expand(2, 1, -1)).squeeze(1)
    fractions = torch.where(fits.any(0), fractions, torch.ones_like(fractions))
    # A centre uniform over the positions inside the image; theta scales by the fractions and shifts to the centre.
    centre = uniform(images, -1.0, 1.0, 2, len(images)) * (1 - fractions)
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 1, 1] = fractions
    theta[:, :, 2] = centre.T
    return theta


def affine_theta(
    images: Tensor, angle: Tensor, shift_x: Tensor, shift_y: Tensor, scale: Tensor, shear: Tensor
) -> Tensor:
    """Return the affine maps: shear along x, scale, rotate about the centre, shift.

    Args:
        images: (N, C, H, W); only the shape is used.
        angle: degrees, clockwise.
        shift_x: fraction of the width, to the right.
        shift_y: fraction of the height, down.
        scale: factor, > 1 enlarges.
        shear: degrees.

    Returns:
        (N, 2, 3), for ``warp``.
    """
    height, width = images.shape[-2:]
    turn, slant = angle.deg2rad(), shear.deg2rad().tan()
    cos, sin = turn.cos() / scale, turn.sin() / scale
    # From output back to input in pixels: the inverse maps in the opposite order.
    rows = [[cos - slant * sin, sin + slant * cos], [-sin, cos]]
    # Convert to positions in [-1, 1], whose unit differs along x and y if the image is not square.
    rows[0][1] = rows[0][1] * (height / width)
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
    """Return ``factor * images + (1 - factor) * other``, clipped to [0, 1]; factors may exceed 1."""
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
    """Rotate the hue (of the HSV hexcone) by a fraction of the circle in [-0.5, 0.5]; no change for one channel."""
    if images.shape[1] == 1:
        return images
    # RGB to HSV, (N, H, W) each: value V, chroma C = V - min.
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    inverse = chroma.clamp_min(1e-12).reciprocal_()  # the hue of a grey pixel is multiplied by C = 0 below
    # The hue in sixths of the circle: (G - B) / C if R is the largest, (B - R) / C + 2 if G, else (R - G) / C + 4.
    is_red, is_green = ((channel - value).sign_().add_(1) for channel in (red, green))  # 1 if the largest, else 0
    hue = torch.lerp((red - green).mul_(inverse).add_(4), (blue - red).mul_(inverse).add_(2), is_green)
    hue = torch.lerp(hue, (green - blue).mul_(inverse), is_red).add_(6 * turns.view(-1, 1, 1))
    # Modulo 6, and back to RGB: each channel is V - C + C * clamp(...), piecewise linear in the hue.
    hue.sub_((hue / 6).floor_(), alpha=6)
    rotated = torch.empty_like(images)
    torch.addcmul(low, chroma, (hue - 3).abs_().sub_(1).clamp_(0, 1), out=rotated[:, 0])
    torch.addcmul(low, chroma, (hue - 2).abs_().neg_().add_(2).clamp_(0, 1), out=rotated[:, 1])
    torch.addcmul(low, chroma, (hue - 4).abs_().neg_().add_(2).clamp_(0, 1), out=rotated[:, 2])
    return rotated


def smooth_field(control: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate vectors (N, 2, K, K) to a field (N, height, width, 2): bicubic, the outer points at the corners."""
    return F.interpolate(control, size=list(size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)


def displace(images: Tensor, field: Tensor) -> Tensor:
    """Sample each pixel at its position plus its vector in ``field``; borders are replicated.

    Args:
        images: (N, C, H, W).
        field: (N, H, W, 2), in units of the width and of the height.
    """
    identity = torch.eye(2, 3, device=images.device).expand(len(images), 2, 3)
    grid = affine_grid(identity, *images.shape[-2:])
    return F.grid_sample(images, grid + 2 * field, mode="bilinear", padding_mode="border", align_corners=False)


def random_control(images: Tensor, largest: float) -> Tensor:
    """Draw vectors (N, 2, K, K): standard normal, times a factor uniform in [0, ``largest``] per image."""
    lengths = uniform(images, 0.0, largest).view(-1, 1, 1, 1)
    return torch.randn(len(images), 2, CONTROL_POINTS, CONTROL_POINTS, device=images.device) * lengths


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur with Gaussians truncated at a radius; images are reflected at the border.

    Args:
        images: (N, C, H, W).
        sigma: standard deviations (N,) in pixels, > 0.
        radius: in pixels, below H and W: the kernel has ``2 * radius + 1`` pixels.
    """
    number, channels, height, width = images.shape
    # Normalised kernels (N * C, 2 * radius + 1): softmax of the exponents -x^2 / (2 sigma^2).
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernels = torch.softmax(-0.5 * (offsets / sigma.unsqueeze(1)) ** 2, dim=1).repeat_interleave(channels, dim=0)
    # (1, N * C, H, W): one group per plane.
    planes = F.pad(images, [radius] * 4, mode="reflect").flatten(0, 1).unsqueeze(0)
    for kernel in (kernels[:, None, None, :], kernels[:, None, :, None]):
        planes = F.conv2d(planes, kernel, groups=number * channels)
    return planes.view(number, channels, height, width)
