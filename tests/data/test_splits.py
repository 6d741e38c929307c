"""Splits: held-out images, label noise, stratified subsets, and classes selected by `?classes=...`."""

import pytest
import torch
from helpers.image_folders import write_classes

from pml_supcon.data.images import MemoryImages
from pml_supcon.data.load import load_data, open_data
from pml_supcon.data.splits import split_training_set, stratified_subset

LABELS = torch.tensor([0] * 60 + [3] * 30 + [5] * 10)[torch.randperm(100, generator=torch.Generator().manual_seed(7))]


def divide(labels=LABELS, *, held_out=0.0, label_noise=0.0, seed=0):
    return split_training_set(labels, held_out=held_out, label_noise=label_noise, seed=seed)


def test_nothing_is_changed_by_default():
    split = divide()
    assert split.train.tolist() == list(range(100))
    assert len(split.held_out) == len(split.held_out_labels) == split.wrong == 0
    assert torch.equal(split.labels, LABELS)
    assert split.held_out.dtype == split.train.dtype == torch.int64


@pytest.mark.parametrize(("share", "counts"), [(0.1, [6, 3, 1]), (0.5, [30, 15, 5]), (0.9, [54, 27, 9])])
def test_every_class_is_held_out_in_its_share(share, counts):
    split = divide(held_out=share)
    both = torch.cat([split.train, split.held_out])
    assert sorted(both.tolist()) == list(range(100)), "an image is in both parts or in none"
    assert split.train.tolist() == sorted(split.train.tolist())
    assert split.held_out_labels.bincount()[[0, 3, 5]].tolist() == counts
    assert torch.equal(split.held_out_labels, LABELS[split.held_out])
    assert torch.equal(split.true_labels, LABELS[split.train])


@pytest.mark.parametrize(("share", "held_out"), [(0.004, 0.0), (0.33, 0.2), (1.0, 0.2)])
def test_the_fraction_of_wrong_labels(share, held_out):
    split = divide(label_noise=share, held_out=held_out)
    assert split.wrong == round(share * len(split.train))
    assert set(split.labels.tolist()) <= {0, 3, 5}  # a class without images gets none
    assert torch.equal(split.true_labels, LABELS[split.train])
    assert torch.equal(split.held_out_labels, LABELS[split.held_out])


def test_wrong_labels_are_drawn_evenly_from_the_other_classes():
    labels = torch.arange(4).repeat_interleave(3000)
    split = divide(labels, label_noise=0.5)
    for true in range(4):
        found = split.labels[labels == true].bincount(minlength=4)
        others = [int(found[name]) for name in range(4) if name != true]
        assert 1400 < sum(others) < 1600  # half of 3000, 5 deviations of 27 either way
        assert all(abs(number - sum(others) / 3) < 100 for number in others)


def test_the_seed_draws_the_noise_but_not_the_held_out_images():
    before, state = LABELS.clone(), torch.get_rng_state()
    one, again, other = (divide(label_noise=0.3, held_out=0.3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.labels, again.labels)
    assert not torch.equal(one.labels, other.labels)
    assert torch.equal(one.held_out, other.held_out)
    assert torch.equal(LABELS, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_test_images_of_one_new_class_have_no_labels(tmp_path):
    """As `test/unknown/*` of a competition: retrieval among them would always be right."""
    write_classes(tmp_path / "train", red=4, green=4)
    write_classes(tmp_path / "test", blue=4)
    for new_classes in ("all", "some"):
        with pytest.raises(ValueError, match="all are of one class that training lacks, 'blue'"):
            open_data(f"imagefolder:{tmp_path}", new_classes=new_classes)
    write_classes(tmp_path / "train", blue=4)
    assert len(open_data(f"imagefolder:{tmp_path}", new_classes="all").test) == 4


def test_new_classes_are_said(tmp_path):
    write_classes(tmp_path / "train", red=4, green=4)
    write_classes(tmp_path / "test", blue=4)
    (tmp_path / "test/blue").rename(tmp_path / "test/sky")
    write_classes(tmp_path / "test", blue=4)
    _, said, _ = open_data(f"imagefolder:{tmp_path}", new_classes="all").summary()
    assert said == "train: 8 images of train/; test: 8 images of test/, all of classes that train lacks"


def test_images_of_both_parts():
    data = load_data("digits", max_train=100)
    split = divide(data.train_labels, held_out=0.2, label_noise=0.1)
    training, apart = split.training_images(data), split.held_out_images(data)
    assert isinstance(training, MemoryImages)
    assert torch.equal(training.images, data.train.images[split.train])
    assert torch.equal(training.labels, split.labels)
    assert torch.equal(apart.images, data.train.images[split.held_out])
    assert torch.equal(apart.labels, split.held_out_labels)
    assert divide(data.train_labels).training_images(data) is data.train  # not copied


@pytest.mark.parametrize(
    ("labels", "shares", "message"),
    [
        ([0] * 5 + [1], {"held_out": 0.5}, "--held_out to leave an image of each of 2 classes on both sides"),
        ([0] * 50 + [1] * 50, {"held_out": 0.01}, "but 0.01 of 100 are 1 and the rarest class has 50"),
        ([0] * 98 + [1] * 2, {"held_out": 0.99}, "--held_out to leave an image of each class to train on, but got"),
        ([1] * 10, {"label_noise": 0.5}, "at least 2 classes for --label_noise, but got 1"),
    ],
)
def test_impossible_fractions_raise(labels, shares, message):
    with pytest.raises(ValueError, match=message):
        divide(torch.tensor(labels), **shares)


@pytest.mark.parametrize("counts", [[90, 10], [97, 1, 1, 1], [5, 5, 5], [1, 1, 50]])
def test_stratified_subsets_follow_the_shares(counts):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    total = sum(counts)
    for count in range(len(counts), total + 1):
        chosen = stratified_subset(labels, count, seed=3)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == count
        got = labels[chosen].bincount(minlength=len(counts)).tolist()
        assert min(got) >= 1  # which may take up to C - 1 from the large classes
        assert all(abs(each - of * count / total) <= len(counts) for each, of in zip(got, counts, strict=True))


# selected classes


def images_of(data, split, name):
    part = getattr(data, split)
    return part.images[part.labels == data.class_names.index(name)]


@pytest.mark.parametrize(("wanted", "names"), [("7,2-3", "237"), ("3-3,1", "13"), ("0-9", "0123456789")])
def test_selected_classes_keep_their_images(wanted, names):
    some, whole = load_data(f"digits?classes={wanted}"), load_data("digits")
    assert some.class_names == tuple(names)
    assert some.train_labels.unique().tolist() == some.test_labels.unique().tolist() == list(range(len(names)))
    for name in names:
        few, all_of_them = (
            torch.cat([images_of(data, split, name) for split in ("train", "test")]).flatten(1).tolist()
            for data in (some, whole)
        )
        assert sorted(few) == sorted(all_of_them)


def test_names_of_classes_precede_numbers(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        write_classes(tmp_path / split, red=count, green=count, blue=count)
        (tmp_path / split / "blue").rename(tmp_path / split / "2")
        (tmp_path / split / "green").rename(tmp_path / split / "0")  # the names in their order: 0, 2, red
    data = load_data(f"imagefolder:{tmp_path}?classes=red,2")
    assert data.class_names == ("2", "red")
    assert (len(data.train), len(data.test)) == (8, 4)
    assert set(images_of(data, "train", "red")[:, 0, 5, 5].tolist()) == {200}
    assert set(images_of(data, "test", "2")[:, 2, 5, 5].tolist()) == {200}


@pytest.mark.parametrize("wanted", ["3", "0-12", "7-2", "cat,1", "0,,1", "-1"])
def test_missing_classes_raise(wanted):
    with pytest.raises(ValueError, match=r"Expected .* after `classes=`"):
        open_data(f"digits?classes={wanted}")
