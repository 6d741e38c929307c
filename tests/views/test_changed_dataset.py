"""Datasets with a fixed change of their images."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from pml_supcon.corruptions import Corruption
from pml_supcon.views import ChangedDataset, GaussianNoise, Grey, Rotation, Sobel

CHANGES = [Grey(), Rotation(90), Sobel(), GaussianNoise(0.1, 3), Corruption("fog", 4), Corruption("motion_blur", 3)]


def random_images(count, *, channels=3, height=32, width=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def picture_of(image):
    """Return the PIL image of a tensor (C, H, W)."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.key)
def test_images_are_changed_by_their_indices_and_keep_their_type(change, channels):
    images = random_images(3, channels=channels)
    expected = change(images, torch.arange(3))
    tensors = ChangedDataset(list(zip(images, "abc", strict=True)), change)
    pictures = ChangedDataset([(picture_of(image), 7) for image in images], change)
    assert len(tensors) == len(pictures) == 3
    for place in (2, 0, 1):
        image, label = tensors[place]
        assert (image.dtype, label) == (torch.uint8, "abc"[place])
        assert torch.equal(image, expected[place])
        image, label = pictures[place]
        assert (image.mode, label) == ("L" if channels == 1 else "RGB", 7)
        assert np.array_equal(np.asarray(image), np.asarray(picture_of(expected[place])))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_that_is_not_square_keeps_its_sides(channels):
    images = random_images(1, channels=channels, height=20, width=33)
    image, _ = ChangedDataset([(picture_of(images[0]), 0)], Rotation(180))[0]
    assert image.size == (33, 20)
    assert np.array_equal(np.asarray(image), np.asarray(picture_of(images[0]).rotate(180)))


@pytest.mark.parametrize("change", [None, GaussianNoise(0.1, 3)])
def test_the_transform_comes_last_and_gets_the_type_of_the_image(change):
    images = random_images(3)
    noisy = images if change is None else change(images, torch.arange(3))
    for_pictures = transforms.Compose([transforms.Resize(16), transforms.ToTensor()])
    found = ChangedDataset([(picture_of(image), 0) for image in images], change, transform=for_pictures)
    assert torch.equal(found[2][0], for_pictures(picture_of(noisy[2])))
    found = ChangedDataset([(image, 0) for image in images], change, transform=lambda image: image.float() / 255)
    assert torch.equal(found[2][0], noisy[2].float() / 255)


@pytest.mark.parametrize("change", [None, GaussianNoise()], ids=["none", "noise"])
def test_indices_count_from_both_ends(change):
    data = ChangedDataset([(image, n * 2) for n, image in enumerate(random_images(4))], change)
    for place in (-1, -4, np.int64(2)):
        image, label = data[place]
        assert torch.equal(image, data[int(place) % 4][0])
        assert label == place % 4 * 2
    for place in (4, -5):
        with pytest.raises(IndexError):
            data[place]


@pytest.mark.parametrize("change", [None, *CHANGES], ids=lambda change: change and change.key)
def test_a_pickled_copy_returns_the_same_images(change):
    data = ChangedDataset([(picture_of(image), 5) for image in random_images(2)], change)
    assert pickle.loads(pickle.dumps(data))[1] == data[1]


@pytest.mark.parametrize(
    ("image", "error", "text"),
    [
        (torch.zeros(3, 32, 32), TypeError, "to be uint8, but image 0 is torch.float32"),
        (torch.zeros(32, 32, dtype=torch.uint8), ValueError, r"\(C, H, W\), but image 0 has shape \(32, 32\)"),
        (np.zeros((32, 32, 3), np.uint8), TypeError, "PIL images or uint8 tensors, but image 0 is a ndarray"),
        (Image.new("RGBA", (32, 32)), ValueError, 'mode "L" or "RGB", but image 0 has \'RGBA\''),
    ],
)
def test_other_images_are_rejected(image, error, text):
    for change in (None, GaussianNoise()):
        with pytest.raises(error, match=text):
            ChangedDataset([(image, 0)], change)[0]


def test_options_are_checked():
    with pytest.raises(TypeError, match="`change` to be callable, or None, but got 'fog'"):
        ChangedDataset([], "fog")
    with pytest.raises(TypeError, match="`transform` to be callable, or None, but got 3"):
        ChangedDataset([], None, transform=3)
