"""Corruptions as changes of batches: draws, strengths, shapes and errors."""

from concurrent.futures import ThreadPoolExecutor

import imagecorruptions
import numpy as np
import pytest
import torch
from helpers.pictures import colour_batch, large_batch
from PIL import Image
from sklearn.datasets import load_digits

from pml_supcon import _extras
from pml_supcon.corruptions import CORRUPTIONS, Corruption, corruption, strengths_for

FIXED = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
DRAWN = [name for name in CORRUPTIONS if name not in FIXED]


def distances(name, images, strengths):
    """Return the root mean square distance to the clean images at each severity."""
    indices = range(len(images))
    changed = [Corruption(name, level, strengths=strengths)(images, indices) for level in range(1, 6)]
    return [float((each.double() - images.double()).square().mean().sqrt()) for each in changed]


# The pairs of severities between which the distance falls or stays with the constants of the benchmarks.
NOT_RISING_32 = {
    "glass_blur": {(1, 2), (2, 3), (4, 5)},
    "motion_blur": {(3, 4)},
    "frost": {(3, 4), (4, 5)},
    "elastic_transform": {(1, 2), (2, 3), (3, 4), (4, 5)},
}
NOT_RISING_224 = {
    "glass_blur": {(1, 2), (3, 4)},
    "snow": {(2, 3)},
    "frost": {(2, 3), (3, 4), (4, 5)},
    "fog": {(3, 4)},
}


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("strengths", "exceptions"), [("32", NOT_RISING_32), ("224", NOT_RISING_224)])
def test_the_distance_to_the_clean_image_rises(name, strengths, exceptions):
    copies = 24 if name in ("fog", "frost", "snow") else 3  # draws for the whole image vary most
    images = colour_batch(48) if strengths == "32" else large_batch().repeat(copies, 1, 1, 1)
    found = distances(name, images, strengths)
    falls = {(level + 1, level + 2) for level in range(4) if found[level + 1] <= found[level]}
    assert falls <= exceptions.get(name, set()), found
    assert found[0] > 1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_224_equals_the_library_under_the_documented_seed(name):
    image = large_batch()[:1, :, 20:116, 30:110]
    pixels = image[0].permute(1, 2, 0).contiguous().numpy()
    for severity in (1, 5):
        words = np.random.SeedSequence((3, CORRUPTIONS.index(name), severity, 17)).generate_state(4)
        np.random.seed(words)
        own = {"seed": int(words[0])} if name in ("impulse_noise", "glass_blur") else {}
        expected = imagecorruptions.corrupt(pixels, severity, name, **own)
        found = Corruption(name, severity, strengths="224", seed=3)(image, [17])
        assert np.array_equal(found[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("strengths", ["32", "224"])
def test_an_image_is_the_same_in_any_batch(name, strengths):
    images, change = colour_batch(6), Corruption(name, 4, strengths=strengths)
    indices = torch.tensor([5, 0, 900, 3, 2**40, 7])
    whole = change(images, indices)
    np.random.seed(123)  # earlier draws do not matter
    for rows in ([4, 1, 5], [0], [3]):
        assert torch.equal(change(images[rows], indices[rows]), whole[rows])


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("strengths", ["32", "224"])
def test_index_and_seed_change_what_is_drawn(name, strengths):
    images = colour_batch(1)
    first = Corruption(name, 1, strengths=strengths)(images, [0])
    assert not torch.equal(first, Corruption(name, 1, strengths=strengths)(images, [1]))
    assert not torch.equal(first, Corruption(name, 1, strengths=strengths, seed=1)(images, [0]))


def test_the_global_state_of_numpy_is_restored_also_after_an_error(monkeypatch):
    def fail(*_):
        np.random.uniform()
        raise OSError("no picture")

    np.random.seed(7)
    np.random.normal()  # stores a second normal, which is state too
    expected = np.random.RandomState(7).normal(size=2)[1]
    for strengths in ("32", "224"):
        Corruption("snow", 2, strengths=strengths)(colour_batch(2), [0, 1])
    monkeypatch.setattr(corruption.cifar_c, "corrupt", fail)
    with pytest.raises(OSError, match="no picture"):
        Corruption("frost", 1)(colour_batch(1), [0])
    assert np.random.normal() == expected


def test_threads_do_not_disturb_each_other():
    images = colour_batch(16)
    changes = [Corruption("fog", 3), Corruption("gaussian_noise", 3, strengths="224")] * 4
    expected = [change(images, range(16)) for change in changes]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda change: change(images, range(16)), changes))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(33, 47), (7, 20), (70, 45), (1, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size(name, size, channels):
    images = torch.randint(256, (2, channels, *size), dtype=torch.uint8)
    before = images.clone()
    for strengths in ("32", "224"):
        found = Corruption(name, 3, strengths=strengths)(images, [0, 1])
        assert found.shape == images.shape
        assert found.dtype == torch.uint8
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"gaussian_noise", "shot_noise", "impulse_noise"}))
@pytest.mark.parametrize("strengths", ["32", "224"])
def test_grey_is_the_luminance_of_three_equal_channels(name, strengths):
    images = colour_batch(2)[:, 1:2]
    change = Corruption(name, 3, strengths=strengths)
    colour = change(images.expand(-1, 3, -1, -1), [4, 5]).permute(0, 2, 3, 1).numpy()
    expected = np.stack([np.asarray(Image.fromarray(pixels).convert("L")) for pixels in colour])
    assert np.array_equal(change(images, [4, 5])[:, 0].numpy(), expected)


@pytest.mark.parametrize(("strengths", "deviation", "side"), [("32", 0.08, 200), ("32", 0.08, 8), ("224", 0.18, 200)])
def test_grey_noise_is_as_strong_as_the_noise_of_a_channel_in_images_of_any_size(strengths, deviation, side):
    grey = torch.full((40_000 // side**2, 1, side, side), 128, dtype=torch.uint8)
    found = Corruption("gaussian_noise", 3, strengths=strengths)(grey, range(len(grey))).double().std()
    assert found == pytest.approx(255 * deviation, rel=0.02)


def test_a_small_image_is_blurred_as_its_repetition_at_32():
    image = torch.from_numpy((load_digits().images[:1] * 255 / 16).astype(np.uint8))[:, None]
    large = image.repeat_interleave(4, 2).repeat_interleave(4, 3)
    expected = torch.nn.functional.avg_pool2d(Corruption("motion_blur", 5)(large, [9]).double(), 4).round()
    assert torch.equal(Corruption("motion_blur", 5)(image, [9]).double(), expected)


@pytest.mark.parametrize(("size", "strengths"), [((64, 40), "32"), ((40, 66), "224"), ((66, 40), "224")])
def test_auto_depends_on_the_larger_side(size, strengths):
    images = torch.randint(256, (1, 3, *size), dtype=torch.uint8)
    expected = Corruption("contrast", 1, strengths=strengths)(images, [0])
    assert torch.equal(Corruption("contrast", 1)(images, [0]), expected)
    assert strengths_for(*size) == strengths


def test_names_equal_the_benchmarks_and_keys_differ():
    assert list(CORRUPTIONS) == imagecorruptions.get_corruption_names("common")
    changes = [Corruption(name, level, seed=seed) for name in CORRUPTIONS for level in (1, 2) for seed in (0, 1)]
    changes += [Corruption("fog", 1, strengths="32"), Corruption("fog", 1, strengths="224")]
    assert len({change.key for change in changes}) == len(changes)
    assert repr(changes[0]) == "Corruption('gaussian_noise', 1, strengths='auto', seed=0)"


def test_other_layouts_of_memory_and_an_empty_batch():
    images = colour_batch(3)
    strided = images.contiguous(memory_format=torch.channels_last)
    change = Corruption("snow", 2)
    assert torch.equal(change(strided, [0, 1, 2]), change(images, torch.tensor([0, 1, 2], dtype=torch.int32)))
    assert change(images[:0], []).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "gausian noise"}, "got 'gausian noise'; did you mean 'gaussian_noise'"),
        ({"name": 3}, "Expected argument `name` to be a string, but got int"),
        ({"severity": 6}, "Expected argument `severity` to be between 1 and 5, but got 6"),
        ({"strengths": "64"}, "Expected argument `strengths` to be one of .*, but got '64'"),
        ({"seed": -1}, "Expected argument `seed` to be at least 0, but got -1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Corruption(**{"name": "fog", "severity": 1, **options})


@pytest.mark.parametrize(
    ("shape", "indices", "message"),
    [
        ((1, 4, 32, 32), [0], r"`images` to have shape \(N, C, H, W\) with C = 1 or 3, but got \(1, 4, 32, 32\)"),
        ((1, 3, 32, 32), [0, 1], r"one index per image, shape \(1,\), but got shape \(2,\)"),
        ((1, 3, 32, 32), [-1], "`indices` to be at least 0, but got -1"),
        ((1, 3, 32, 32), [0.5], r"`indices` to be torch\.int64, but got torch\.float32"),
    ],
)
def test_wrong_images_and_indices(shape, indices, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Corruption("contrast", 1)(torch.zeros(shape, dtype=torch.uint8), indices)


def test_the_library_is_missing(monkeypatch):
    def missing(name):
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(_extras, "import_module", missing)
    with pytest.raises(ImportError, match=r"libGL\.so\.1.*pml-supcon\[corruptions\].*opencv-python-headless"):
        Corruption("fog", 1)
