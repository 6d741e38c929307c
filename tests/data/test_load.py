"""`load_data`: the digits, images in memory or decoded when read, sizes, channels, subsets and broken images."""

import pickle

import numpy as np
import pytest
import torch
from helpers.image_folders import refuse, write_classes
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pml_supcon.data import load
from pml_supcon.data.images import LazyImages, MemoryImages
from pml_supcon.data.load import load_data


@pytest.fixture
def folder(tmp_path):
    """Return the specification of the folder of the test."""
    return f"imagefolder:{tmp_path}"


def test_digits_are_scikit_learns_in_a_stratified_split():
    data, digits = load_data("digits"), load_digits()
    chosen = train_test_split(np.arange(1797), test_size=0.3, stratify=digits.target, random_state=0)
    for split, rows in zip((data.train, data.test), map(np.sort, chosen), strict=True):
        assert torch.equal(split.labels, torch.from_numpy(digits.target[rows]).long())
        expected = np.round(digits.images[rows] * 255 / 16).astype(np.uint8)
        assert torch.equal(split.images[:, 0], torch.from_numpy(expected))
    assert data.mean[0] == pytest.approx(data.train.images.double().mean().item() / 255, abs=1e-6)
    assert data.std[0] == pytest.approx(data.train.images.double().std(correction=0).item() / 255, abs=1e-6)
    assert (data.in_chans, data.image_size, data.num_classes, data.family) == (1, 8, 10, "digits")
    assert data.spec == "digits"
    image, label = data.train[3]
    assert image.dtype == torch.uint8
    assert type(label) is int


def test_the_seed_draws_the_subset_but_not_the_split():
    first, again, other = (load_data("digits", max_train=50, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.test.images, other.test.images)
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images, other.train.images)
    assert first.train.labels.bincount().tolist() == [5] * 10


def test_images_of_several_sizes_are_decoded_when_read(tmp_path, folder):
    write_classes(tmp_path / "train", red=3, green=3)
    write_classes(tmp_path / "train", green=2, size=(30, 20), suffix="jpg")
    write_classes(tmp_path / "test", red=2)
    data = load_data(folder)
    assert isinstance(data.train, LazyImages)
    assert data.image_size == 20
    image, label = data.train[0]  # green/000.jpg
    assert (image.size, image.mode, label) == ((30, 20), "RGB", 0)
    assert len(pickle.loads(pickle.dumps(data.train))) == 8
    assert load_data(folder, image_size=16).image_size == 16


def test_sets_beyond_the_memory_limit_are_decoded_when_read(tmp_path, folder, monkeypatch):
    write_classes(tmp_path, red=10, green=10)
    eager = load_data(folder)
    monkeypatch.setattr(load, "MEMORY_LIMIT", 20 * 3 * 12 * 12 - 1)
    lazy = load_data(folder)
    assert isinstance(lazy.train, LazyImages)
    assert (lazy.image_size, lazy.mean, lazy.std) == (eager.image_size, eager.mean, eager.std)
    assert np.array_equal(np.array(lazy.test[2][0]), eager.test.images[2].permute(1, 2, 0).numpy())
    assert torch.equal(lazy.test.labels, eager.test.labels)


def test_a_size_beyond_the_sampled_headers_is_detected(tmp_path, folder, monkeypatch):
    write_classes(tmp_path / "train", red=8, green=8)
    write_classes(tmp_path / "test", red=2, green=2)
    monkeypatch.setattr(load, "CHECK_LIMIT", 3)
    monkeypatch.setattr(load, "STATISTICS_LIMIT", 2)
    assert isinstance(load_data(folder).train, MemoryImages)
    Image.new("RGB", (9, 9)).save(tmp_path / "train/red/007.png")
    data = load_data(folder)
    assert isinstance(data.train, LazyImages)
    assert isinstance(data.test, LazyImages)
    assert data.image_size == 12


def test_grey_images_have_one_channel_and_the_digits_family(tmp_path, folder):
    write_classes(tmp_path, red=10, green=10, mode="L")
    data = load_data(folder)
    assert (data.in_chans, data.family) == (1, "digits")
    assert data.train.images.shape == (14, 1, 12, 12)
    assert load_data(folder, image_size=224).family == "natural"
    write_classes(tmp_path, red=1)  # one colour image makes all of them colour images
    assert load_data(folder).in_chans == 3


def test_transparent_and_palette_images_become_rgb(tmp_path, folder):
    write_classes(tmp_path, red=4, mode="RGBA")
    write_classes(tmp_path, green=4, mode="P")
    data = load_data(folder)
    assert data.train.images.shape[1] == 3
    assert (data.train.images[data.train.labels == 1][:, 0, 5, 5] == 200).all()


def damage(path, how):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="jpeg")
    path.write_bytes(path.read_bytes()[:-400] if how == "body" else b"not an image")


@pytest.mark.parametrize("how", ["header", "body"])
@pytest.mark.parametrize("other_size", [40, 8])  # kept in memory, or decoded when read
def test_all_corrupt_images_are_named(tmp_path, folder, how, other_size):
    write_classes(tmp_path / "train", red=9, green=6, size=(40, 40), suffix="jpg")
    write_classes(tmp_path / "test", red=2, green=2, size=(other_size, other_size), suffix="jpg")
    damage(tmp_path / "train/red/001.jpg", how)
    damage(tmp_path / "train/green/004.jpg", how)
    refuse(folder, r"green/004\.jpg is not a readable image.*\n.*red/001\.jpg is not")
    for path in (tmp_path / "train/red").iterdir():
        damage(path, how)
    refuse(folder, r"^(.*is not a readable image.*\n){5}and 5 more$")


def test_an_image_that_breaks_later_is_named_when_read(tmp_path, folder):
    write_classes(tmp_path, red=5, green=5)
    write_classes(tmp_path, red=1, size=(8, 8))
    data = load_data(folder)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"gone")
    with pytest.raises(ValueError, match=r"green/\d+\.png is not a readable image"):
        data.train[0]


def test_images_of_16_bits_raise(tmp_path, folder):
    write_classes(tmp_path, red=5, green=5)
    Image.fromarray(np.full((12, 12), 40_000, dtype=np.uint16)).save(tmp_path / "red/000.png")
    refuse(folder, r"8 bits per channel, but got more \(mode 'I;16'\).*red/000\.png")


def test_constant_images_raise(tmp_path, folder):
    write_classes(tmp_path, red=5, green=5, size=(1, 1))
    for path in tmp_path.rglob("*.png"):
        Image.new("RGB", (8, 8)).save(path)
    refuse(folder, "all pixels of the train images have the same value")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("digit", {}, "one of digits, torchvision:NAME, .* but got 'digit'; did you mean 'digits'"),
        ("imagefoldr:x", {}, "did you mean 'imagefolder'"),
        ("torchvision", {}, "one of digits"),
        ("hf:", {}, "a name or path after `hf:`"),
        ("digits?split=train", {}, "options of `digits:` to be among: classes; but got split"),
        ("digits", {"image_size": 0}, "`image_size` to be at least 1, but got 0"),
        ("digits", {"max_train": 9}, "`max_train` to be at least the number of classes, 10, but got 9"),
        ("digits", {"max_test": 9}, "`max_test` to be at least the number of classes, 10, but got 9"),
    ],
)
def test_invalid_arguments(spec, options, message):
    refuse(spec, message, **options)


@pytest.mark.parametrize(("sizes", "expected"), [([(105, 105)], 105), ([(300, 400)], 224), ([(90, 60), (50, 80)], 60)])
def test_images_are_not_enlarged_by_default(tmp_path, folder, sizes, expected):
    for size in sizes:
        write_classes(tmp_path, red=4, green=4, size=size, suffix=f"{size[0]}.png")
    assert load_data(folder).image_size == expected
