"""Fixed changes of images beside PIL, torchvision and scipy."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from scipy.stats import kstest
from torchvision.transforms.v2 import functional as TF

from pml_supcon.views import GaussianNoise, Grey, Rotation, Sobel, transformation_tasks

CHANGES = [Grey(), Rotation(0), Rotation(90), Rotation(180), Rotation(270), Sobel(), GaussianNoise(0.2, 4)]


def images(number=6, channels=3, height=8, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (number, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.key)
def test_the_change_of_an_image_is_the_same_in_any_batch_and_the_input_stays(change, channels):
    batch = images(channels=channels)
    before, indices = batch.clone(), torch.tensor([7, 0, 123456, 3, 2**40, 4])
    torch.manual_seed(1)
    changed = change(batch, indices)
    assert (changed.dtype, changed.shape) == (torch.uint8, batch.shape)
    order = torch.tensor([4, 1, 0, 2, 5, 3])
    torch.manual_seed(2)
    assert torch.equal(change(batch[order], indices[order]), changed[order])
    for row in range(6):
        assert torch.equal(change(batch[row : row + 1], indices[row : row + 1])[0], changed[row])
    assert torch.equal(batch, before)
    assert change(batch[:0], indices[:0]).shape == (0, *batch.shape[1:])


def test_keys_differ_between_changes_and_options():
    several = [*CHANGES, GaussianNoise(0.2, 5), GaussianNoise(0.1, 4)]
    assert len({change.key for change in several}) == len(several)
    assert GaussianNoise(0.1).key == GaussianNoise(std=np.float64(0.1), seed=np.int64(0)).key


def test_grey_is_pils_brightness_in_all_channels():
    batch = images(2)
    changed = Grey()(batch, torch.arange(2))
    for image, grey in zip(batch, changed, strict=True):
        expected = np.asarray(ImageOps.grayscale(Image.fromarray(image.permute(1, 2, 0).numpy())), dtype=int)
        for channel in grey:
            assert np.abs(channel.numpy().astype(int) - expected).max() <= 1  # PIL rounds
    alone = images(2, channels=1)
    assert torch.equal(Grey()(alone, torch.arange(2)), alone)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_torchvisions(degrees):
    batch = images(height=5, width=5)
    assert torch.equal(Rotation(degrees)(batch, torch.arange(6)), TF.rotate(batch, degrees))


def test_images_that_are_not_square_are_turned_by_half_circles_only():
    batch = images(height=4, width=6)
    for degrees in (0, 180):
        assert Rotation(degrees)(batch, torch.arange(6)).shape == batch.shape
    for degrees in (90, 270):
        with pytest.raises(ValueError, match=f"square for a rotation by {degrees} degrees, but got height 4 and width"):
            Rotation(degrees)(batch, torch.arange(6))


@pytest.mark.parametrize("channels", [1, 3])
def test_sobel_is_scipys_magnitude_scaled(channels):
    batch = images(4, channels=channels, height=5, width=7)
    changed = Sobel()(batch, torch.arange(4))
    for plane, edges in zip(batch.flatten(0, 1), changed.flatten(0, 1), strict=True):
        x, y = (ndimage.sobel(plane.numpy().astype(float), axis=axis, mode="nearest") for axis in (0, 1))
        assert np.array_equal(edges.numpy(), np.round(np.hypot(x, y) / math.sqrt(20)))


def test_sobel_uses_its_range_and_no_more():
    corners = torch.tensor(list(itertools.product([0, 255], repeat=8)), dtype=torch.uint8)
    patches = torch.cat([corners[:, :4], torch.zeros(256, 1, dtype=torch.uint8), corners[:, 4:]], 1).view(-1, 1, 3, 3)
    changed = Sobel()(patches, torch.arange(256))[:, 0, 1, 1]
    assert (changed.max(), changed.min()) == (255, 0)
    largest = max(
        np.hypot(*(ndimage.sobel(p, axis=axis)[1, 1] for axis in (0, 1))) for p in patches[:, 0].double().numpy()
    )
    assert largest / math.sqrt(20) == pytest.approx(255)  # no value is clipped


def test_noise_has_its_deviation_and_differs_between_images_and_seeds():
    grey = torch.full((3, 3, 64, 64), 128, dtype=torch.uint8)
    changed = GaussianNoise(0.1, seed=7)(grey, torch.arange(3)).double() - 128
    assert kstest((changed.flatten() + torch.rand(changed.numel()) - 0.5) / 25.5, "norm").pvalue > 1e-3
    other = GaussianNoise(0.1, seed=8)(grey, torch.arange(3)).double() - 128
    rows = torch.cat([changed, other]).flatten(1)
    assert (rows.corrcoef() - torch.eye(6)).abs().max() < 0.05
    assert rows.std(dim=1).tolist() == pytest.approx([25.5] * 6, rel=0.03)


def test_noise_is_clipped_to_the_range():
    white = torch.full((1, 1, 32, 32), 255, dtype=torch.uint8)
    changed = GaussianNoise(0.1)(white, torch.tensor([0]))
    assert (changed == 255).float().mean() == pytest.approx(0.5, abs=0.05)
    assert changed.min() > 100  # nothing wraps around


@pytest.mark.parametrize("change", CHANGES[::2], ids=lambda change: change.key)
@pytest.mark.parametrize(
    ("replaced", "error", "message"),
    [
        ({"images": np.zeros((6, 3, 8, 8), np.uint8)}, TypeError, r"`images` to be a torch\.Tensor, but got ndarray"),
        ({"images": images().float()}, TypeError, r"`images` to be torch.uint8, but got torch.float32"),
        ({"images": images()[0]}, ValueError, r"C = 1 or 3, but got \(3, 8, 8\)"),
        ({"images": images(channels=2)}, ValueError, r"C = 1 or 3, but got \(6, 2, 8, 8\)"),
        ({"images": images(height=0)}, ValueError, r"but got \(6, 3, 0, 8\)"),
        ({"indices": [0] * 6}, TypeError, r"`indices` to be a torch\.Tensor, but got list"),
        ({"indices": torch.arange(6).int()}, TypeError, "`indices` to be torch.int64, but got torch.int32"),
        ({"indices": torch.arange(5)}, ValueError, r"shape \(6,\), but got shape \(5,\)"),
    ],
)
def test_images_and_indices_are_checked(change, replaced, error, message):
    with pytest.raises(error, match=message):
        change(**({"images": images(), "indices": torch.arange(6)} | replaced))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Rotation(45), ValueError, r"`degrees` to be one of \[0, 90, 180, 270\], but got 45"),
        (lambda: Rotation(90.0), TypeError, "`degrees` to be an integer, but got 90.0"),
        (lambda: GaussianNoise(0.0), ValueError, "`std` to be above 0, but got 0.0"),
        (
            lambda: GaussianNoise([10**5000]),
            TypeError,
            "`std` to be a number, but got a list with an integer of thousa",
        ),
        (lambda: GaussianNoise(seed=-1), ValueError, "`seed` to be at least 0, but got -1"),
        (lambda: GaussianNoise()(images(), torch.arange(-1, 5)), ValueError, "`indices` to be at least 0, but got -1"),
        (lambda: transformation_tasks(in_chans=2), ValueError, r"`in_chans` to be one of \[1, 3\], but got 2"),
    ],
)
def test_options_are_checked(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_tasks_have_distinct_variants_and_the_seed_reaches_the_noise():
    tasks = transformation_tasks(in_chans=3, seed=5)
    counts = {task: len(variants) for task, variants in tasks.items()}
    assert counts == {"colour": 2, "rotation": 4, "corruption": 2, "sobel": 2}
    batch = images()
    for variants in tasks.values():
        changed = [batch if change is None else change(batch, torch.arange(6)) for change in variants]
        assert all(not torch.equal(a, b) for a, b in itertools.combinations(changed, 2))
    assert tasks["corruption"][1].seed == 5
    assert "colour" not in transformation_tasks(in_chans=1)
