"""Which images are trained on, with which labels: counts and sets, against the promises of `split_training_set`."""

import pytest
import torch

from pml_supcon.data.images import MemoryImages
from pml_supcon.data.load import load_data
from pml_supcon.data.splits import split_training_set

LABELS = torch.tensor([0] * 60 + [3] * 30 + [5] * 10)[torch.randperm(100, generator=torch.Generator().manual_seed(7))]


def divided(labels=LABELS, *, held_out=0.0, label_noise=0.0, seed=0):
    return split_training_set(labels, held_out=held_out, label_noise=label_noise, seed=seed)


def test_nothing_is_changed_by_default():
    split = divided()
    assert split.train.tolist() == list(range(100))
    assert len(split.held_out) == len(split.held_out_labels) == split.wrong == 0
    assert torch.equal(split.labels, LABELS)
    assert split.held_out.dtype == split.train.dtype == torch.int64


@pytest.mark.parametrize(("share", "counts"), [(0.1, [6, 3, 1]), (0.5, [30, 15, 5]), (0.9, [54, 27, 9])])
def test_every_class_is_held_out_in_its_share(share, counts):
    split = divided(held_out=share)
    both = torch.cat([split.train, split.held_out])
    assert sorted(both.tolist()) == list(range(100)), "an image is in both parts or in none"
    assert split.train.tolist() == sorted(split.train.tolist())
    assert split.held_out_labels.bincount()[[0, 3, 5]].tolist() == counts
    assert torch.equal(split.held_out_labels, LABELS[split.held_out])
    assert torch.equal(split.true_labels, LABELS[split.train])


def test_the_same_images_are_held_out_whatever_the_seed():
    assert torch.equal(divided(held_out=0.3, seed=0).held_out, divided(held_out=0.3, seed=1).held_out)


@pytest.mark.parametrize("share", [0.001, 0.004, 0.1, 0.33, 1.0])
@pytest.mark.parametrize("held_out", [0.0, 0.2])
def test_as_many_labels_are_wrong_as_were_asked_for(share, held_out):
    split = divided(label_noise=share, held_out=held_out)
    assert split.wrong == round(share * len(split.train))
    assert set(split.labels.tolist()) <= {0, 3, 5}  # a class without images gets none
    assert torch.equal(split.true_labels, LABELS[split.train])
    assert torch.equal(split.held_out_labels, LABELS[split.held_out])


def test_wrong_labels_are_drawn_evenly_from_the_other_classes():
    labels = torch.arange(4).repeat_interleave(3000)
    split = divided(labels, label_noise=0.5)
    for true in range(4):
        found = split.labels[labels == true].bincount(minlength=4)
        others = [int(found[name]) for name in range(4) if name != true]
        assert 1400 < sum(others) < 1600  # half of 3000, 5 deviations of 27 either way
        assert all(abs(number - sum(others) / 3) < 100 for number in others)


def test_wrong_labels_follow_the_seed_and_leave_the_given_ones_alone():
    before = LABELS.clone()
    one, again, other = (divided(label_noise=0.3, seed=seed).labels for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(LABELS, before)


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    divided(held_out=0.2, label_noise=0.2)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_of_both_parts():
    data = load_data("digits", max_train=100)
    split = divided(data.train_labels, held_out=0.2, label_noise=0.1)
    training, apart = split.training_images(data), split.held_out_images(data)
    assert isinstance(training, MemoryImages)
    assert torch.equal(training.images, data.train.images[split.train])
    assert torch.equal(training.labels, split.labels)
    assert torch.equal(apart.images, data.train.images[split.held_out])
    assert torch.equal(apart.labels, split.held_out_labels)
    assert divided(data.train_labels).training_images(data) is data.train  # not copied without need


@pytest.mark.parametrize(
    ("labels", "shares", "message"),
    [
        ([0] * 5 + [1], {"held_out": 0.5}, "--held_out to leave an image of each of 2 classes on both sides"),
        ([0] * 50 + [1] * 50, {"held_out": 0.01}, "but 0.01 of 100 are 1 and the rarest class has 50"),
        ([0] * 98 + [1] * 2, {"held_out": 0.99}, "--held_out to leave an image of each class to train on, but got"),
        ([1] * 10, {"label_noise": 0.5}, "at least 2 classes for --label_noise, but got 1"),
    ],
)
def test_impossible_shares_are_refused(labels, shares, message):
    with pytest.raises(ValueError, match=message):
        divided(torch.tensor(labels), **shares)
