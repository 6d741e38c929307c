"""`load_data` on data sets of torchvision, and its errors."""

import struct

import numpy as np
import pytest
import torch
import torchvision
from helpers.image_folders import refuse
from PIL import Image

from pml_supcon.data.load import load_data


def write_mnist(root, train, test):
    """Write the four files of torchvision's MNIST, uncompressed."""
    raw = root / "MNIST/raw"
    raw.mkdir(parents=True)
    for prefix, labels in (("train", train), ("t10k", test)):
        images = np.stack([np.full((28, 28), 10 * label + i % 3, dtype=np.uint8) for i, label in enumerate(labels)])
        count = len(labels)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, count, 28, 28) + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, count) + bytes(labels))


def test_torchvision_by_name_in_any_case(tmp_path, monkeypatch):
    monkeypatch.setenv("PML_SUPCON_DATA", str(tmp_path))
    write_mnist(tmp_path, list(range(10)) * 3, list(range(10)))
    data = load_data("torchvision:mnist", max_train=20)
    assert data.train.images.shape == (20, 1, 28, 28)
    assert data.train.labels.bincount().tolist() == [2] * 10
    assert torch.equal(data.train.images[:, 0, 0, 0].long() // 10, data.train.labels)
    assert torch.equal(data.test.labels, torch.arange(10))
    assert data.class_names[3] == "3 - three"
    assert (data.family, data.image_size) == ("digits", 28)


def test_torchvision_without_a_test_part_is_split(monkeypatch):
    class FakeData(torchvision.datasets.FakeData):
        def __init__(self, transform=None):
            super().__init__(size=60, image_size=(3, 10, 10), num_classes=3, transform=transform)

    monkeypatch.setattr(torchvision.datasets, "FakeData", FakeData)
    data = load_data("torchvision:FakeData")
    assert (len(data.train), len(data.test), data.num_classes) == (42, 18, 3)
    assert data.train.images.shape == (42, 3, 10, 10)


class SplitData(torchvision.datasets.VisionDataset):
    """A data set with named splits, whose labels are `_labels`."""

    def __init__(self, root, split="train", download=False):
        if split not in ("trainval", "test"):
            raise ValueError(f"Unknown value {split!r} for argument split")
        if download:
            raise OSError("no network")
        self._labels = [0, 1, 0, 1] if split == "trainval" else [1]

    def __len__(self):
        return len(self._labels)

    def __getitem__(self, index):
        return Image.new("RGB", (10, 10), (50 * index, 0, 7)), self._labels[index]


def test_torchvision_splits_by_name(monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "SVHN", SplitData)
    data = load_data("torchvision:svhn")
    assert data.train_labels.tolist() == [0, 1, 0, 1]
    assert data.test_labels.tolist() == [1]
    assert data.family == "digits", "house numbers are not to be mirrored"


def test_torchvision_labels_must_be_integers(monkeypatch):
    class Attributes(SplitData):
        def __init__(self, root, split="train", download=False):
            super().__init__(root, split, download)
            self._labels = [[0, 1]] * 4

    monkeypatch.setattr(torchvision.datasets, "CelebA", Attributes)
    refuse("torchvision:celeba", "one integer label >= 0 per image, but torchvision's CelebA has other")


def test_torchvision_download_failure_says_where(tmp_path, monkeypatch):
    class Missing(SplitData):
        def __init__(self, root, split="train", download=False):
            if not download:
                raise RuntimeError("Dataset not found")
            super().__init__(root, "test", download)

    monkeypatch.setattr(torchvision.datasets, "SVHN", Missing)
    monkeypatch.setenv("PML_SUPCON_DATA", str(tmp_path))
    with pytest.raises(OSError, match=f"could not download Missing into {tmp_path} .*no network"):
        load_data("torchvision:SVHN")


def test_torchvision_arguments_reach_the_constructor(monkeypatch):
    seen = []

    class Parent(SplitData):
        def __init__(self, root, train=True, download=False):
            super().__init__(root, "trainval" if train else "test")

    class Child(Parent):
        def __init__(self, root, split, **kwargs):
            seen.append((split, kwargs["train"]))
            super().__init__(root, **kwargs)

    monkeypatch.setattr(torchvision.datasets, "EMNIST", Child)
    assert load_data("torchvision:emnist?split=letters").test_labels.tolist() == [1]
    assert seen == [("letters", True), ("letters", False)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR-10", "but got 'CIFAR-10'; the nearest names are CIFAR10"),
        ("emnist", r"EMNIST needs \['split'\].*\?ARGUMENT=VALUE"),
        ("cifar10?size=3", r"CIFAR10 needs no further arguments, but got \{'size': '3'\}"),
    ],
)
def test_torchvision_errors(name, message):
    refuse(f"torchvision:{name}", message)
