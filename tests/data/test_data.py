"""`load_data` on the digits and on folders that the tests write themselves, and every error it promises."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pml_supcon.data import load as data_module
from pml_supcon.data.images import LazyImages, MemoryImages, evenly
from pml_supcon.data.load import load_data
from pml_supcon.data.splits import stratified_subset

COLOURS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}


def write_class(folder, colour, count, *, size=(12, 12), mode="RGB", suffix="png"):
    """Write flat images; image i has its first pixel's last channel set to i, to tell them apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = Image.new("RGB", size, colour)
        image.putpixel((0, 0), (*colour[:2], i))
        image.convert(mode).save(folder / f"{i:03}.{suffix}")


def write_classes(root, counts, **options):
    for name, count in counts.items():
        write_class(root / name, COLOURS[name], count, **options)


# digits


def test_digits_are_scikit_learns_in_a_stratified_split():
    data = load_data("digits")
    digits = load_digits()
    rows = np.arange(1797)
    train, test = train_test_split(rows, test_size=0.3, stratify=digits.target, random_state=0)
    for split, chosen in ((data.train, np.sort(train)), (data.test, np.sort(test))):
        assert torch.equal(split.labels, torch.from_numpy(digits.target[chosen]).long())
        expected = np.round(digits.images[chosen] * 255 / 16).astype(np.uint8)
        assert torch.equal(split.images[:, 0], torch.from_numpy(expected))
    assert data.mean[0] == pytest.approx(data.train.images.double().mean().item() / 255, abs=1e-6)
    assert data.std[0] == pytest.approx(data.train.images.double().std(correction=0).item() / 255, abs=1e-6)
    assert (data.in_chans, data.image_size, data.num_classes, data.family) == (1, 8, 10, "digits")
    assert data.spec == "digits"


def test_the_split_does_not_depend_on_seed_but_the_subset_does():
    first, again, other = (load_data("digits", max_train=50, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.test.images, other.test.images)
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images, other.train.images)
    assert len(first.train) == 50
    assert first.train.labels.bincount().tolist() == [5] * 10


def test_items_are_pairs_of_image_and_int():
    image, label = load_data("digits").train[3]
    assert image.dtype == torch.uint8
    assert type(label) is int


# imagefolder


@pytest.mark.parametrize("test_name", ["test", "val", "valid"])
def test_folder_with_train_and_test(tmp_path, test_name):
    write_classes(tmp_path / "train", {"red": 4, "green": 3})
    write_classes(tmp_path / test_name, {"red": 2, "green": 1})
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.class_names == ("green", "red")
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 1, 1]
    assert data.image_size == 12
    assert data.family == "natural"
    assert isinstance(data.train, MemoryImages)
    for i in range(3):  # every image at its place, with its label
        assert data.train.images[i, :, 5, 5].tolist() == [0, 200, 0]
        assert data.train.images[i, :, 0, 0].tolist() == [0, 200, i]
    assert data.train.images[6, :, 0, 0].tolist() == [200, 0, 3]
    assert data.test.images[1, :, 5, 5].tolist() == [200, 0, 0]
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())


def test_folder_of_class_folders_is_split(tmp_path):
    write_classes(tmp_path, {"red": 10, "green": 20})
    (tmp_path / ".hidden").mkdir()
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.train_labels.bincount().tolist() == [14, 7]
    assert data.test_labels.bincount().tolist() == [6, 3]
    pixels = {tuple(image[:, 0, 0].tolist()) for part in (data.train, data.test) for image in part.images}
    assert len(pixels) == 30, "an image is in both parts or in none"


def test_a_class_may_be_called_train(tmp_path):
    write_class(tmp_path / "train", (10, 20, 30), 4)
    write_class(tmp_path / "plane", (30, 20, 10), 4)
    assert load_data(f"imagefolder:{tmp_path}").class_names == ("plane", "train")


def test_images_of_several_sizes_are_decoded_when_read(tmp_path):
    write_classes(tmp_path / "train", {"red": 3, "green": 3})
    write_class(tmp_path / "train/green", (0, 200, 0), 2, size=(30, 20), suffix="jpg")
    write_classes(tmp_path / "test", {"red": 2})
    data = load_data(f"imagefolder:{tmp_path}")
    assert isinstance(data.train, LazyImages)
    assert data.image_size == 224
    image, label = data.train[0]  # green/000.jpg
    assert image.size == (30, 20)
    assert image.mode == "RGB"
    assert label == 0
    assert len(pickle.loads(pickle.dumps(data.train))) == 8
    assert load_data(f"imagefolder:{tmp_path}", image_size=16).image_size == 16


def test_sets_beyond_the_memory_limit_are_decoded_when_read(tmp_path, monkeypatch):
    write_classes(tmp_path, {"red": 10, "green": 10})
    eager = load_data(f"imagefolder:{tmp_path}")
    monkeypatch.setattr(data_module, "MEMORY_LIMIT", 20 * 3 * 12 * 12 - 1)
    lazy = load_data(f"imagefolder:{tmp_path}")
    assert isinstance(lazy.train, LazyImages)
    assert (lazy.image_size, lazy.mean, lazy.std) == (eager.image_size, eager.mean, eager.std)
    assert np.array_equal(np.array(lazy.test[2][0]), eager.test.images[2].permute(1, 2, 0).numpy())
    assert torch.equal(lazy.test.labels, eager.test.labels)


def test_a_size_beyond_the_surveyed_images_is_found(tmp_path, monkeypatch):
    write_classes(tmp_path / "train", {"red": 8, "green": 8})
    write_classes(tmp_path / "test", {"red": 2, "green": 2})
    monkeypatch.setattr(data_module, "CHECK_LIMIT", 3)
    monkeypatch.setattr(data_module, "STATISTICS_LIMIT", 2)
    assert isinstance(load_data(f"imagefolder:{tmp_path}").train, MemoryImages)
    Image.new("RGB", (9, 9)).save(tmp_path / "train/red/007.png")
    data = load_data(f"imagefolder:{tmp_path}")
    assert isinstance(data.train, LazyImages)
    assert isinstance(data.test, LazyImages)
    assert data.image_size == 224


def test_grey_images_have_one_channel_and_the_digits_family(tmp_path):
    write_classes(tmp_path, {"red": 10, "green": 10}, mode="L")
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.in_chans == 1
    assert data.train.images.shape == (14, 1, 12, 12)
    assert data.family == "digits"
    assert load_data(f"imagefolder:{tmp_path}", image_size=224).family == "natural"


def test_one_colour_image_makes_all_of_them_colour(tmp_path):
    write_classes(tmp_path, {"red": 10, "green": 10}, mode="L")
    write_class(tmp_path / "red", (200, 0, 0), 1)
    assert load_data(f"imagefolder:{tmp_path}").in_chans == 3


def test_transparent_and_palette_images_become_rgb(tmp_path):
    write_classes(tmp_path, {"red": 4}, mode="RGBA")
    write_classes(tmp_path, {"green": 4}, mode="P")
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.train.images.shape[1] == 3
    assert (data.train.images[data.train.labels == 1][:, 0, 5, 5] == 200).all()


def test_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        load_data(f"imagefolder:{tmp_path}/nowhere")
    with pytest.raises(ValueError, match="one folder per class, but it is empty"):
        load_data(f"imagefolder:{tmp_path}")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="one folder per class, but it holds no folder"):
        load_data(f"imagefolder:{tmp_path}")
    with pytest.raises(ValueError, match="options of `imagefolder:` to be among: classes; but got label"):
        load_data(f"imagefolder:{tmp_path}?label=x")


def test_class_without_images_is_named(tmp_path):
    write_classes(tmp_path, {"red": 4, "green": 4})
    (tmp_path / "blue").mkdir()
    (tmp_path / "blue/readme.txt").write_text("none")
    with pytest.raises(ValueError, match="but there are none in blue"):
        load_data(f"imagefolder:{tmp_path}")


def test_test_class_that_train_lacks_is_named(tmp_path):
    write_classes(tmp_path / "train", {"red": 2, "green": 2})
    write_classes(tmp_path / "test", {"red": 2, "blue": 2})
    with pytest.raises(ValueError, match="among those of train, but blue are not"):
        load_data(f"imagefolder:{tmp_path}")


def test_test_without_train_is_refused(tmp_path):
    write_classes(tmp_path / "test", {"red": 2, "blue": 2})
    with pytest.raises(ValueError, match="train with class folders beside"):
        load_data(f"imagefolder:{tmp_path}")


def test_too_few_images_to_split(tmp_path):
    write_classes(tmp_path, {"red": 4, "green": 1})
    with pytest.raises(ValueError, match=r"at least 2 images of every class .* one of green"):
        load_data(f"imagefolder:{tmp_path}")
    write_classes(tmp_path, {"red": 2, "green": 2, "blue": 2})
    for path in (tmp_path / "red").glob("00[23].png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"30 % of the images .* cover its 3 classes, but it has 6"):
        load_data(f"imagefolder:{tmp_path}")


def test_one_class_is_refused(tmp_path):
    write_classes(tmp_path, {"red": 4})
    with pytest.raises(ValueError, match="at least 2 classes"):
        load_data(f"imagefolder:{tmp_path}")


def damage(path, how):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="jpeg")
    path.write_bytes(path.read_bytes()[:-400] if how == "body" else b"not an image")


@pytest.mark.parametrize("how", ["header", "body"])
@pytest.mark.parametrize("other_size", [40, 8])  # kept in memory, or decoded when read
def test_corrupt_images_are_all_named_before_the_run(tmp_path, how, other_size):
    write_classes(tmp_path / "train", {"red": 6, "green": 6}, size=(40, 40), suffix="jpg")
    write_classes(tmp_path / "test", {"red": 2, "green": 2}, size=(other_size, other_size), suffix="jpg")
    damage(tmp_path / "train/red/001.jpg", how)
    damage(tmp_path / "train/green/004.jpg", how)
    with pytest.raises(ValueError, match=r"green/004\.jpg is not a readable image.*\n.*red/001\.jpg is not"):
        load_data(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("how", ["header", "body"])
def test_many_corrupt_images_are_counted(tmp_path, how):
    write_classes(tmp_path / "train", {"red": 9, "green": 3}, size=(40, 40), suffix="jpg")
    write_classes(tmp_path / "test", {"red": 1, "green": 1}, size=(40, 40), suffix="jpg")
    for path in (tmp_path / "train/red").iterdir():
        damage(path, how)
    with pytest.raises(ValueError, match=r"\nand 4 more$") as caught:
        load_data(f"imagefolder:{tmp_path}")
    assert str(caught.value).count("is not a readable image") == 5


def test_an_image_that_breaks_later_is_named_when_read(tmp_path):
    write_classes(tmp_path, {"red": 5, "green": 5})
    write_class(tmp_path / "red", (200, 0, 0), 1, size=(8, 8))
    data = load_data(f"imagefolder:{tmp_path}")
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"gone")
    with pytest.raises(ValueError, match=r"green/\d+\.png is not a readable image"):
        data.train[0]


def test_images_of_16_bits_are_refused(tmp_path):
    write_classes(tmp_path, {"red": 5, "green": 5})
    Image.fromarray(np.full((12, 12), 40_000, dtype=np.uint16)).save(tmp_path / "red/000.png")
    with pytest.raises(ValueError, match=r"8-bit images, but .*red/000\.png has mode 'I;16'"):
        load_data(f"imagefolder:{tmp_path}")


def test_constant_images_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    with pytest.raises(ValueError, match="all pixels of the train images have the same value"):
        load_data(f"imagefolder:{tmp_path}")


# the rest


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "one of digits, torchvision:NAME, .* but got 'digit'; did you mean 'digits'"),
        ("imagefoldr:x", "did you mean 'imagefolder'"),
        ("torchvision", "one of digits"),
        ("hf:", "a name or path after `hf:`"),
        ("", "one of digits"),
    ],
)
def test_unknown_forms(spec, message):
    with pytest.raises(ValueError, match=message):
        load_data(spec)


@pytest.mark.parametrize("name", ["image_size", "max_train", "max_test"])
def test_options_are_checked(name):
    with pytest.raises(ValueError, match=f"`{name}` to be at least 1, but got 0"):
        load_data("digits", **{name: 0})


@pytest.mark.parametrize("name", ["max_train", "max_test"])
def test_subsets_hold_every_class(name):
    with pytest.raises(ValueError, match=f"`{name}` to be at least the number of classes, 10, but got 9"):
        load_data("digits", **{name: 9})


@pytest.mark.parametrize("counts", [[90, 10], [97, 1, 1, 1], [5, 5, 5], [1, 1, 50]])
def test_stratified_subsets_follow_the_shares(counts):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    total = sum(counts)
    for count in range(len(counts), total + 1):
        chosen = stratified_subset(labels, count, seed=3)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == count
        got = labels[chosen].bincount(minlength=len(counts))
        assert (got >= 1).all()
        room = len(counts) - 1  # what the minimum of one may take from the large classes
        assert all(abs(got[c].item() - counts[c] * count / total) <= 1 + room for c in range(len(counts)))


def test_evenly_covers_the_range():
    assert evenly(5, 10) == [0, 1, 2, 3, 4]
    assert evenly(100, 4) == [0, 25, 50, 75]
    assert evenly(0, 4) == []
