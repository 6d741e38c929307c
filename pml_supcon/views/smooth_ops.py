"""Smooth image operations on a whole batch: a warp by a random field, and a Gaussian blur of each image's own width.

Images are float (N, C, H, W) on any device, as in `batch_ops`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pml_supcon.views import batch_ops as ops

CONTROL_POINTS = 4  # of the field along a side, corners included


def smooth_field(control: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate vectors at control points to a smooth field (bicubic; the outer points lie on the corners).

    Args:
        control: (N, 2, K, K), x and y of each vector.
        size: height and width of the field.

    Returns:
        (N, height, width, 2).
    """
    return F.interpolate(control, size=size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)


def displace(images: Tensor, field: Tensor) -> Tensor:
    """Look up each pixel at its own position plus the field's vector; beyond the border lie copies of the border.

    Args:
        images: (N, C, H, W).
        field: (N, H, W, 2), in units of the width and of the height.
    """
    identity = torch.eye(2, 3, device=images.device).expand(len(images), 2, 3)
    height, width = images.shape[-2:]
    shape = [len(images), images.shape[1], height, width]
    grid = ops.affine_grid(identity, height) if height == width else F.affine_grid(identity, shape, align_corners=False)
    return F.grid_sample(images, grid + 2 * field, mode="bilinear", padding_mode="border", align_corners=False)


def random_control(images: Tensor, largest: float) -> Tensor:
    """Draw vectors (N, 2, K, K): standard normal, times a length that is uniform in [0, `largest`] for each image."""
    lengths = ops.uniform(images, 0.0, largest).view(-1, 1, 1, 1)
    return torch.randn(len(images), 2, CONTROL_POINTS, CONTROL_POINTS, device=images.device) * lengths


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur with Gaussians that are cut off at a radius; images are mirrored at the border.

    Args:
        images: (N, C, H, W).
        sigma: standard deviations (N,) in pixels, > 0.
        radius: in pixels, below H and W: the kernel has `2 * radius + 1` of them.
    """
    number, channels, height, width = images.shape
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernels = torch.softmax(-0.5 * (offsets / sigma.unsqueeze(1)) ** 2, dim=1).repeat_interleave(channels, dim=0)
    planes = F.pad(images, [radius] * 4, mode="reflect").flatten(0, 1).unsqueeze(0)  # a group of one plane each
    for kernel in (kernels[:, None, None, :], kernels[:, None, :, None]):
        planes = F.conv2d(planes, kernel, groups=number * channels)
    return planes.view(number, channels, height, width)
