"""The classes in labels, and the values that colour a map."""

import torch

from pml_supcon.data.label_kinds import classes_of, colours_of, describe_labels, has_new_classes, label_at

CLASSES = torch.tensor([2, 0, 1])
LEVELS = torch.tensor([[0, 1], [1, 2], [0, 0]])
SETS = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1]]).bool()
SHARES = torch.tensor([[0.2, 0.8], [0.5, 0.5]])


def test_classes_are_the_labels_or_the_finest_level():
    assert classes_of(CLASSES).tolist() == [2, 0, 1]
    assert classes_of(LEVELS).tolist() == [1, 2, 0]
    assert [classes_of(labels) for labels in (SETS, SHARES, SHARES[:, 0])] == [None] * 3


def test_new_classes_are_those_of_the_finest_level():
    assert has_new_classes(LEVELS[:1], LEVELS[1:])
    assert not has_new_classes(LEVELS, LEVELS[1:])
    assert not has_new_classes(SETS[:1], SETS[2:])


def test_items_are_integers_for_classes_and_tensors_else():
    assert label_at(CLASSES, 0) == 2
    assert isinstance(label_at(CLASSES, 0), int)
    assert torch.equal(label_at(LEVELS, 1), LEVELS[1])
    assert label_at(SHARES[:, 0], 1) == 0.5


def test_colours():
    names = ("a", "b", "c")
    assert colours_of(CLASSES, "classes", names)[0].tolist() == [2, 0, 1]
    assert colours_of(LEVELS, "hierarchy", names)[0].tolist() == [1, 2, 0]
    found, shown = colours_of(SETS, "sets", names)
    assert [shown[index] for index in found] == ["b", "no label", "a"]
    assert colours_of(SHARES, "soft", names)[0].tolist() == [1, 0]
    assert torch.equal(colours_of(SHARES, "numbers", ())[0], SHARES[:, 0])
    assert torch.equal(colours_of(SHARES[:, 1], "numbers", ())[0], SHARES[:, 1])


def test_a_summary_names_ten_classes():
    text = describe_labels(torch.arange(12).repeat(2), "classes", [f"c{index}" for index in range(12)])
    assert text == f"12 classes ({', '.join(f'c{index} 2' for index in range(10))}, and 2 more; 2 to 2 images each)"
    assert describe_labels(SHARES, "soft", ["a", "b"]) == "shares of 2 classes (a 0.7, b 1.3)"
