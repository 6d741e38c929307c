"""Blur beside torchvision's, and the warp's shifts, lengths and smoothness."""

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as VF

from pml_supcon.views import batch_ops as ops
from pml_supcon.views.steps import GaussianBlur, SmoothWarp


@pytest.mark.parametrize(("shape", "radius"), [((3, 3, 9, 9), 1), ((2, 1, 12, 20), 4), ((4, 3, 32, 32), 5)])
def test_blur_agrees_with_torchvision(shape, radius):
    images = torch.rand(shape)
    sigma = torch.linspace(0.3, 2.5, len(images))
    expected = [
        VF.gaussian_blur(image, [2 * radius + 1] * 2, [width.item()] * 2)
        for image, width in zip(images, sigma, strict=True)
    ]
    torch.testing.assert_close(ops.gaussian_blur(images, sigma, radius), torch.stack(expected))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (20, 12)])
def test_no_vectors_move_nothing(height, width):
    images = torch.rand(3, 2, height, width)
    field = ops.smooth_field(torch.zeros(3, 2, 4, 4), (height, width))
    torch.testing.assert_close(ops.displace(images, field), images, atol=1e-5, rtol=0)


def test_equal_vectors_shift_the_image():
    images = torch.rand(1, 1, 10, 10)
    control = torch.tensor([0.2, -0.1]).view(1, 2, 1, 1).expand(1, 2, 4, 4)  # 2 pixels in x, -1 in y
    moved = ops.displace(images, ops.smooth_field(control, (10, 10)))
    torch.testing.assert_close(moved[..., 1:, :8], images[..., :9, 2:], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        moved[..., 1:, 9], images[..., :9, 9], atol=1e-5, rtol=0
    )  # beyond the border: its values


def test_the_field_is_smooth_and_goes_through_the_corners():
    control = torch.randn(5, 2, 4, 4)
    field = ops.smooth_field(control, (64, 64))
    for i, j in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        torch.testing.assert_close(field[:, i, j], control[:, :, i, j], atol=1e-5, rtol=0)
    steps = torch.cat([field.diff(dim=1).flatten(), field.diff(dim=2).flatten()]).abs().max()
    span = field.amax() - field.amin()
    assert steps < 0.12 * span  # 21 pixels between two points
    bends = torch.cat([field.diff(n=2, dim=1).flatten(), field.diff(n=2, dim=2).flatten()]).abs().max()
    assert bends < 0.03 * span


def test_warp_leaves_a_constant_image_and_keeps_the_range():
    constant = torch.full((20, 3, 16, 16), 0.3)
    torch.testing.assert_close(SmoothWarp(1.0, 0.3)(constant.clone()), constant)
    done = SmoothWarp(1.0, 0.3)(torch.rand(50, 3, 16, 16))
    assert done.min() >= 0
    assert done.max() <= 1


def test_lengths_of_the_warp():
    """An image whose values are its coordinates shows how far each pixel has moved."""
    x, y = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="xy")
    positions = torch.stack([x, y]).expand(2000, 2, 32, 32) / 32
    moved = (SmoothWarp(1.0, 0.1)(positions.clone()) - positions)[:, :, 12:20, 12:20]
    # at a control point: normal times uniform length, E[(u z)^2] = 0.1^2 / 3; between points the cubic averages
    deviation = moved.square().mean().sqrt().item()
    assert 0.5 * 0.1 / math.sqrt(3) < deviation < 1.05 * 0.1 / math.sqrt(3)
    assert moved.mean().abs() < 0.004
    rough = moved.diff(dim=-1).abs().amax((1, 2, 3))
    assert rough.quantile(0.9) < 0.04  # neighbours move together: about a pixel apart at most


@pytest.mark.parametrize("step", [SmoothWarp(0.5, 0.1), GaussianBlur(0.5, (0.5, 2.0), 3)])
def test_about_half_of_the_images_are_changed(step):
    images = torch.rand(400, 1, 12, 12)
    changed = (step(images.clone()) != images).flatten(1).any(1).sum()
    assert 150 < changed < 250


def test_random_vectors():
    control = ops.random_control(torch.zeros(5000, 1, 2, 2), 0.2)
    assert control.shape == (5000, 2, 4, 4)
    lengths = control.flatten(1).std(1)  # of one image: uniform in [0, 0.2]
    assert lengths.mean().item() == pytest.approx(0.1, rel=0.05)
    assert (lengths - 0.2).clamp_min(0).mean() < 0.005
    assert control.mean().abs() < 0.002
