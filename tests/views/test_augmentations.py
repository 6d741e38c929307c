"""Augmentations against torchvision's own operations, one image at a time."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF

from pml_supcon.views import batch_ops as ops
from pml_supcon.views import image_transform
from pml_supcon.views.augmentations import contrastive_augmentation, digit_augmentation, evaluation_transform

RGB = {"mean": [0.0] * 3, "std": [1.0] * 3}
GREY = {"mean": [0.0], "std": [1.0]}
STILL = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "jitter": (0, 0, 0, 0), "grey_probability": 0.0}
STILL_DIGITS = {"rotation": 0, "shift": 0, "scale": (1, 1), "shear": 0, "brightness": 0, "contrast": 0}


@pytest.mark.parametrize(("height", "width"), [(9, 9), (8, 8), (6, 11)])
def test_affine_maps_agree_with_torchvision(height, width):
    images = torch.rand(5, 2, height, width)
    angle = torch.tensor([0.0, 20, -35, 5, 90])
    shift_x, shift_y = torch.tensor([0.0, 0.2, 0, -0.1, 0.3]), torch.tensor([0.0, 0, -0.15, 0.1, 0.05])
    scale, shear = torch.tensor([1.0, 1.2, 0.7, 1, 1.1]), torch.tensor([0.0, 10, -15, 30, 5])
    theta = ops.affine_theta(images, angle, shift_x, shift_y, scale, shear)
    grid = torch.nn.functional.affine_grid(theta, images.shape, align_corners=False)
    torch.testing.assert_close(ops.affine_grid(theta, height, width), grid, atol=1e-5, rtol=0)
    ours = torch.nn.functional.grid_sample(images, grid, align_corners=False)
    if height == width:
        torch.testing.assert_close(ops.warp(images, theta, height), ours, atol=1e-5, rtol=0)
    for i in range(5):
        expected = VF.affine(
            images[i],
            angle=angle[i].item(),
            translate=[shift_x[i].item() * width, shift_y[i].item() * height],
            scale=scale[i].item(),
            shear=[shear[i].item(), 0.0],
            interpolation=v2.InterpolationMode.BILINEAR,
        )
        torch.testing.assert_close(ours[i], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (ops.adjust_brightness, VF.adjust_brightness, [0.0, 0.6, 1.0, 1.4]),
        (ops.adjust_contrast, VF.adjust_contrast, [0.0, 0.6, 1.0, 1.4]),
        (ops.adjust_saturation, VF.adjust_saturation, [0.0, 0.6, 1.0, 1.4]),
        (ops.adjust_hue, VF.adjust_hue, [-0.5, -0.1, 0.0, 0.3]),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_operations_agree_with_torchvision(ours, theirs, factors, channels):
    images = torch.rand(4, channels, 7, 5)
    images[:, :, 0] = 0.0
    images[:, :, 1] = 0.4  # grey rows: no hue
    images[:, 0, 2] = 1.0
    expected = torch.stack([theirs(image, factor) for image, factor in zip(images, factors, strict=True)])
    torch.testing.assert_close(ours(images, torch.tensor(factors)), expected, atol=1e-5, rtol=0)


def test_crops_are_distributed_as_torchvision_draws_them():
    theta = ops.crop_theta(torch.zeros(1).expand(4000, 3, 1000, 1500), (0.2, 1.0), (3 / 4, 4 / 3))
    width, height = theta[:, 0, 0], theta[:, 1, 1]
    ours = torch.stack([width, height, width * height, (theta[:, 0, 2] - width + 1) / 2])
    reference, image = v2.RandomResizedCrop(8, (0.2, 1.0), (3 / 4, 4 / 3)), torch.zeros(1).expand(1, 1000, 1500)
    drawn = [reference.make_params([image]) for _ in range(4000)]
    theirs = [
        (p["width"] / 1500, p["height"] / 1000, p["width"] * p["height"] / 1.5e6, p["left"] / 1500) for p in drawn
    ]
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    expected = torch.tensor(theirs).quantile(quantiles, dim=0)
    torch.testing.assert_close(ours.quantile(quantiles, dim=1), expected, atol=0.03, rtol=0)
    assert ((theta[:, :, 2].abs() + torch.stack([width, height], 1)) <= 1 + 1e-6).all()  # inside the image


def test_the_whole_image_replaces_a_crop_that_never_fits():
    theta = ops.crop_theta(torch.zeros(50, 1, 8, 8), (1.0, 1.0), (1.2, 1.3))
    torch.testing.assert_close(theta, torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]).expand(50, 2, 3))


def test_shrinking_does_not_alias():
    stripes = (torch.arange(48) % 3 == 1).float().expand(2, 1, 48, 48)  # every third pixel, which plain sampling hits
    warped = ops.warp(stripes, torch.eye(2, 3).expand(2, 2, 3), 8)
    torch.testing.assert_close(warped, torch.full_like(warped, 1 / 3), atol=0.12, rtol=0)


@pytest.mark.parametrize("layout", ["one", "batch"])
def test_without_randomness_the_image_is_only_normalised(layout):
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    given = images if layout == "batch" else images[0]
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.4, 0.3]
    expected = (given / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    natural = contrastive_augmentation(8, mean=mean, std=std, flip=False, **STILL)
    digit = digit_augmentation(8, mean=mean, std=std, **STILL_DIGITS)
    for transform in (natural, digit, evaluation_transform(8, mean=mean, std=std)):
        result = transform(given)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["one", "batch"])
def test_flip_mirrors_about_half_of_the_images(layout):
    images, transform = torch.rand(400, 3, 8, 8), contrastive_augmentation(8, **RGB, **STILL)
    flipped = transform(images) if layout == "batch" else torch.stack([transform(image) for image in images])
    mirrored = torch.isclose(flipped, images.flip(-1), atol=1e-5).flatten(1).all(1)
    same = torch.isclose(flipped, images, atol=1e-5).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 150 < mirrored.sum() < 250


def test_probabilities_of_jitter_and_grey():
    images = torch.rand(300, 3, 8, 8)
    base = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": False}
    unchanged = contrastive_augmentation(8, **RGB, **base, jitter_probability=0.0, grey_probability=0.0)(images)
    torch.testing.assert_close(unchanged, images, atol=1e-5, rtol=0)
    grey = contrastive_augmentation(8, **RGB, **base, grey_probability=1.0)(images)
    torch.testing.assert_close(grey[:, 0], grey[:, 2])
    some = contrastive_augmentation(8, **RGB, **base, jitter_probability=0.5, grey_probability=0.0)(images)
    changed = ((some - images).abs().flatten(1).amax(1) > 1e-4).sum()
    assert 110 < changed < 190


def test_evaluation_resizes_the_short_side_and_takes_the_centre():
    image = torch.zeros(1, 16, 48, dtype=torch.uint8)
    image[..., 16:32] = 255
    torch.testing.assert_close(evaluation_transform(8, **GREY)(image), torch.ones(1, 8, 8), atol=0.3, rtol=0)
    assert evaluation_transform(8, **GREY)(image)[..., 1:-1].min() > 0.99


def test_pil_modes_follow_the_number_of_channels():
    palette = Image.new("P", (8, 8), 3)
    assert evaluation_transform(8, **GREY)(palette).shape == (1, 8, 8)
    assert evaluation_transform(8, **RGB)(Image.new("L", (8, 8), 51)).mean().item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (contrastive_augmentation, {"crop_scale": (0.5, 0.2)}, "Expected `crop_scale` to be an increasing pair in"),
        (contrastive_augmentation, {"crop_scale": (0.0, 1.0)}, "Expected `crop_scale` to be an increasing pair in"),
        (contrastive_augmentation, {"crop_scale": (0.5, 1.5)}, "Expected `crop_scale` to be an increasing pair in"),
        (contrastive_augmentation, {"jitter": (0.4, 0.4, 0.4, 0.6)}, "the last at most 0.5"),
        (contrastive_augmentation, {"jitter_probability": 1.5}, "`jitter_probability` to be in"),
        (contrastive_augmentation, {"std": [0.5, 0.0, 0.5]}, "every entry of `std` to be positive"),
        (digit_augmentation, {"shift": 1.5}, r"`shift` to be between 0 and 1, but got 1.5"),
        (digit_augmentation, {"scale": (0.0, 1.0)}, "`scale` to be an increasing pair"),
    ],
)
def test_options_are_checked(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(8, **{**RGB, **options})


def test_inputs_are_checked():
    transform = evaluation_transform(8, **RGB)
    with pytest.raises(ValueError, match=r"C=3 .* but got \(1, 8, 8\)"):
        transform(torch.rand(1, 8, 8))
    with pytest.raises(ValueError, match=r"but got \(8, 8\)"):
        transform(torch.rand(8, 8))
    with pytest.raises(TypeError, match=r"but got torch.int64"):
        transform(torch.zeros(3, 8, 8, dtype=torch.int64))
    with pytest.raises(TypeError, match="but got ndarray"):
        transform(torch.zeros(3, 8, 8).numpy())


def test_all_parts_of_a_batch_are_returned_in_order(monkeypatch):
    images = torch.randint(0, 256, (11, 3, 8, 8), dtype=torch.uint8)
    transform = digit_augmentation(8, **RGB, **STILL_DIGITS)
    for part in (1, 3 * 64 * 4, 10**9):
        monkeypatch.setattr(image_transform, "PART", part)
        torch.testing.assert_close(transform(images), images / 255, atol=1e-5, rtol=0)


def test_one_large_image_is_cropped_before_it_is_shrunk():
    """A small crop of one image keeps a fine pattern, which becomes grey if the image is shrunk first."""
    stripes = (torch.arange(256) % 2).float().expand(1, 256, 256)
    transform = contrastive_augmentation(16, **GREY, crop_scale=(0.002, 0.003), flip=False, jitter_probability=0.0)
    assert transform(stripes).std() > 0.2


def test_steps_in_place_do_not_change_the_input():
    images = torch.rand(4, 3, 8, 8)
    before = images.clone()
    darker = image_transform.ImageTransform(8, **RGB, crop=lambda images: images, steps=[lambda x: x.mul_(0.5)])
    for given, expected in ((images, before / 2), (images[0], before[0] / 2)):
        torch.testing.assert_close(darker(given), expected)
        assert torch.equal(images, before)


def test_bytes_are_rounded():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(image_transform.to_bytes(image_transform.to_float(every)), every)
    assert image_transform.to_bytes(torch.tensor([0.4, 0.6, 254.6]) / 255).tolist() == [0, 1, 255]


def test_the_number_of_threads_does_not_change_the_draws():
    images, transform = torch.rand(200, 3, 32, 32), contrastive_augmentation(32, **RGB)
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            results.append(transform(images))
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [True, 3, None, "", iter([torch.abs])])
def test_steps_are_a_list(steps):
    with pytest.raises(TypeError, match="`steps` to be a list or tuple of functions, but got "):
        image_transform.ImageTransform(8, **RGB, crop=lambda images: images, steps=steps)
