"""Streams of tasks: the classes of each task, their images and labels, domains, and streams that are refused."""

import pytest
import torch

from pml_supcon.data.images import LazyImages, MemoryImages
from pml_supcon.data.load import load_data
from pml_supcon.data.streams import TaskStream, change_images, check_tasks, plan_tasks

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", max_train=200, max_test=60)


def test_tasks_of_equal_size_have_each_class_once():
    assert plan_tasks(NAMES, number=3) == ((0, 1), (2, 3), (4, 5))
    drawn = [plan_tasks(NAMES, number=3, shuffle=True, seed=seed) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    assert all(sorted(label for task in tasks for label in task) == list(range(6)) for tasks in drawn)


def test_given_tasks_keep_their_order():
    assert plan_tasks(NAMES, number=5, given=[["fox", 0], ["bee"], [3, "cat"]]) == ((5, 0), (1,), (3, 2))
    assert plan_tasks(("7", "3"), number=5, given=[[3, "7"]]) == ((1, 0),)  # numbers that are names


def test_every_domain_has_all_classes():
    assert plan_tasks(NAMES, number=2, scenario="domain") == (tuple(range(6)),) * 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"number": 7}, "--num_tasks to be at most the 6 classes, but got 7"),
        ({"number": 4}, "--num_tasks to divide the 6 classes .*, but got 4"),
        ({"number": 6}, "two classes in the first task, .*, but got 'ant' alone"),
        ({"number": 2, "given": [["ant", "bee"], ["cat", "bee"]]}, "class 'bee' is in task 1 and in task 2"),
        ({"number": 2, "given": [["ant", "ant"], ["cat"]]}, "class 'ant' is in task 1 and in task 1"),
        ({"number": 2, "given": [["ant", "bee"], []]}, "a class in each task of --tasks, but task 2 has none"),
        ({"number": 2, "given": [["ant", "gnu"]]}, "classes among ant, .* in --tasks, but got 'gnu'"),
        ({"number": 2, "given": [["ant", 6]]}, "classes among ant, .* in --tasks, but got 6"),
    ],
)
def test_streams_that_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        plan_tasks(NAMES, **options)


def test_tasks_without_images_are_refused():
    tasks, all_classes = ((0, 1), (2, 3)), torch.tensor([0, 1, 2, 3])
    check_tasks(tasks, NAMES, all_classes, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"training images of every class of task 2 \(cat, dog\), but class 'dog'"):
        check_tasks(tasks, NAMES, torch.tensor([0, 1, 2]), all_classes)
    with pytest.raises(ValueError, match=r"test images of task 1 \(ant, bee\), but it has none"):
        check_tasks(tasks, NAMES, all_classes, torch.tensor([2, 3]))


def test_tasks_divide_the_images(digits):
    stream = TaskStream(digits, ((0, 1), (5, 2), (9,)))
    for task, classes in enumerate(stream.tasks):
        places, test = stream.training_places(task), stream.test_images(task)
        labels = stream.labels_at(places)
        images = stream.training_images(places, labels)
        assert stream.stream_labels(task) == list(classes)
        assert set(labels.tolist()) == set(test.labels.tolist()) == set(classes)
        assert torch.equal(labels, digits.train_labels[places])
        assert torch.equal(images.images, digits.train.images[places])
        assert len(places) == sum((digits.train_labels == label).sum() for label in classes)
        assert len(test) == sum((digits.test_labels == label).sum() for label in classes)


@pytest.mark.parametrize("kind", ["permutation", "rotation"])
def test_domains_have_labels_of_their_own_and_changed_images(kind, digits):
    before = digits.train.images.clone()
    stream = TaskStream(digits, plan_tasks(digits.class_names, number=3, scenario="domain"), "domain", kind, seed=1)
    assert stream.stream_labels(2) == list(range(20, 30))
    one, other = stream.training_places(0)[:4], stream.training_places(2)[[7, 0]]
    mixed = torch.cat([other, one])  # as of a task with a buffer, in any order
    labels = stream.labels_at(mixed)
    images = stream.training_images(mixed, labels)
    assert torch.equal(labels, torch.cat([digits.train_labels[[7, 0]] + 20, digits.train_labels[:4]]))
    assert torch.equal(stream.classes(labels), torch.cat([digits.train_labels[[7, 0]], digits.train_labels[:4]]))
    assert torch.equal(images.images[2:], before[:4])  # the first domain is as it was
    assert torch.equal(images.images[:2], change_images(before[[7, 0]], kind, 2, seed=1))
    assert torch.equal(stream.test_images(1).images, change_images(digits.test.images, kind, 1, seed=1))
    assert torch.equal(stream.test_images(1).labels, digits.test_labels)
    assert torch.equal(digits.train.images, before)


@pytest.mark.parametrize("kind", ["permutation", "rotation"])
def test_changes_are_drawn_with_the_seed_and_keep_the_content(kind):
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    changed = [change_images(images, kind, *drawn) for drawn in ((1, 0), (1, 0), (2, 0), (1, 1))]
    assert torch.equal(changed[0], changed[1])
    assert not any(torch.equal(changed[0], each) for each in (images, *changed[2:]))
    assert changed[0].dtype == torch.uint8
    if kind == "permutation":
        assert torch.equal(changed[0].flatten(1).sort().values, images.flatten(1).sort().values)


def test_domains_need_images_in_memory(digits):
    lazy = LazyImages(digits.train, digits.train_labels, 1)
    data = type(digits)(**{**vars(digits), "train": lazy})
    TaskStream(data, ((0, 1),))
    with pytest.raises(ValueError, match="memory with --scenario domain"):
        TaskStream(data, ((0, 1),), "domain")
    assert isinstance(digits.train, MemoryImages)
