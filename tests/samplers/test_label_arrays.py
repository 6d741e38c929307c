"""Labels as checked arrays: classes, sets and trees, of every type, and wrong ones."""

import numpy as np
import pytest
import torch
from helpers.rich_labels import SETS, TREE, long_tailed_tree

from pml_supcon.samplers.label_arrays import hierarchy_classes, labels_digest, read_labels


@pytest.mark.parametrize("kind", [list, np.uint8, np.float32, torch.bool, torch.bfloat16])
def test_sets_of_every_type_are_the_same(kind):
    as_kind = SETS.astype(int).tolist() if kind is list else SETS.astype(kind) if isinstance(kind, type) else None
    sets = read_labels(torch.tensor(SETS).to(kind) if as_kind is None else as_kind, "sets")
    assert sets.dtype == bool
    assert (sets == SETS).all()


def test_levels_are_codes():
    for labels in (TREE.tolist(), TREE * 7 - 100, torch.tensor(TREE, dtype=torch.int16)):
        levels = read_labels(labels, "hierarchy")
        for column, original in zip(levels.T, TREE.T, strict=True):
            assert (column == np.unique(original, return_inverse=True)[1]).all()


def test_digests_differ_in_shape_and_content():
    assert labels_digest(np.zeros((6, 2), bool)) != labels_digest(np.zeros((4, 3), bool))
    assert labels_digest(SETS) == labels_digest(SETS.copy()) != labels_digest(SETS[::-1].copy())


@pytest.mark.parametrize(
    ("labels", "labels_are", "error", "message"),
    [
        ([0, 1], "set", ValueError, "`labels_are` to be one of .*'set'; did you mean 'sets'"),
        ([0, 1], ["sets"], ValueError, "`labels_are` to be one of"),
        (SETS.astype(int), "classes", ValueError, r"got shape \(200, 20\); name .* labels_are='sets' or 'hierarchy'"),
        ([0, 1], "sets", ValueError, r"`labels` to have the shape \(n, C\) .* labels_are='sets', but got shape \(2,\)"),
        ([0, 1], "hierarchy", ValueError, r"shape \(n, L\) .* but got shape \(2,\)"),
        (np.zeros((3, 0), int), "hierarchy", ValueError, r"not be empty .* but got shape \(3, 0\)"),
        (np.zeros((0, 3), bool), "sets", ValueError, r"not be empty .* but got shape \(0, 3\)"),
        ([[0, 1], [2, 0]], "sets", ValueError, "`labels` to be bool, or 0 and 1, where they are sets, but got 2"),
        ([[0, 1], [1]], "sets", TypeError, r"`labels` to be bool, or 0 and 1, but got \[\[0, 1\], \[1\]\]"),
        (torch.full((3, 2), 0.5), "sets", ValueError, "or 0 and 1, where they are sets, but got 0.5"),
        (np.full((3, 2), np.nan), "sets", ValueError, "or 0 and 1, where they are sets, but got nan"),
        (torch.zeros(3, 2) + 0j, "sets", TypeError, "`labels` to be bool, or 0 and 1, but got torch.complex64"),
        (torch.zeros(3, 2), "hierarchy", TypeError, "`labels` to be integers, but got torch.float32"),
        (np.full((3, 2), "a"), "sets", TypeError, "`labels` to be bool, or 0 and 1, but got dtype <U1"),
        (SETS, "hierarchy", TypeError, "`labels` to be integers, but got dtype bool; bool rows are labels_are='sets'"),
        ([[0, 5], [1, 5]], "hierarchy", ValueError, "column 1 of `labels` to have one parent, but label 5 has 0 and 1"),
    ],
)
def test_wrong_labels_raise(labels, labels_are, error, message):
    with pytest.raises(error, match=message):
        read_labels(labels, labels_are)


def finest_shared(levels, least):
    """Return the class of each row by a loop from fine to coarse, as a set of rows."""
    classes, free = [], set(range(len(levels)))
    for level in reversed(range(levels.shape[1])):
        for label in np.unique(levels[:, level]):
            rows = {row for row in free if levels[row, level] == label}
            if rows and len(rows) >= (least if level else 1):
                classes.append(frozenset(rows))
                free -= rows
    return set(classes)


@pytest.mark.parametrize("least", [1, 2, 4, 9])
def test_classes_of_a_tree_are_the_finest_with_enough_samples(least):
    for seed in range(5):
        levels = read_labels(long_tailed_tree(150, 4, seed), "hierarchy")
        classes = hierarchy_classes(levels, least)
        assert {frozenset(np.flatnonzero(classes == c)) for c in np.unique(classes)} == finest_shared(levels, least)
        assert least > 1 or (classes == levels[:, -1]).all()
        one_level = hierarchy_classes(levels[:, -1:], least)
        assert (one_level == levels[:, -1]).all()
