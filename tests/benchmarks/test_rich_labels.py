"""The comparisons of targets run through on small data, and their parts compute what they say."""

import label_sets
import long_tail
import numbers_as_labels
import numpy as np
import pytest
import tabular
import torch


@pytest.mark.slow
def test_label_sets_run_through(tmp_path):
    generator = np.random.default_rng(0)
    data = {}
    for part, number in (("train", 60), ("test", 40)):
        data[f"{part}_x"] = generator.normal(size=(number, 5)).astype(np.float32)
        data[f"{part}_y"] = (data[f"{part}_x"][:, :3] > 0).astype(np.uint8)
    np.savez(tmp_path / "sets.npz", **data)
    rows = label_sets.main(["--data", str(tmp_path / "sets.npz"), "--quick"])
    assert len(rows) == len(label_sets.METHODS)
    assert float(rows[0][1]) > 0.9  # the features show the labels


@pytest.mark.slow
def test_numbers_run_through():
    rows = numbers_as_labels.main(["--quick"])
    assert len(rows) == len(numbers_as_labels.METHODS)
    assert float(rows[0][1]) > 0.3


@pytest.mark.slow
def test_the_long_tail_runs_through():
    rows = long_tail.main(["--data", "digits", "--quick"])
    assert [row[0] for row in rows] == list(long_tail.METHODS)
    assert all(len(row) == len(long_tail.HEADER) for row in rows)


def test_the_long_tail_has_its_profile():
    kept = long_tail.long_tail(torch.arange(10).repeat(3000), 5000)
    counts = torch.bincount(torch.arange(10).repeat(3000)[kept]).tolist()
    assert counts == sorted(counts, reverse=True)
    assert counts[0] / counts[-1] == pytest.approx(100, rel=0.05)
    assert sum(counts) == pytest.approx(5000, abs=10)


def test_views_replace_a_third_of_the_features():
    views = tabular.corrupted_views(torch.zeros(500, 20), torch.ones(3, 20))
    assert views.shape == (500, 2, 20)
    assert views.mean().item() == pytest.approx(tabular.REPLACED, abs=0.03)


def test_equal_sets_are_one_class_of_the_powerset():
    sets = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 1]])
    classes = label_sets.powerset(sets)
    assert (classes[:, None] == classes).tolist() == [[i == j or {i, j} == {0, 2} for i in range(4)] for j in range(4)]
