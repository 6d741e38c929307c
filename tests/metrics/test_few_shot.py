import itertools

import numpy as np
import pytest
import torch
from helpers.labelled_points import of_any_length
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cosine_similarity

from pml_supcon.metrics import few_shot
from pml_supcon.metrics.few_shot import few_shot_metrics


def accuracy_by_loops(train, learnt, chosen, test, wanted):
    """Classify by the nearest class mean of unit rows, by the cosine, one test row at a time."""
    unit = torch.nn.functional.normalize(torch.from_numpy(train))
    names = sorted(set(learnt.tolist()))
    means = [unit[[row for row in chosen if learnt[row] == name]].mean(dim=0) for name in names]
    right = 0
    for row, label in zip(torch.from_numpy(test), wanted, strict=True):
        cosines = [float(cosine_similarity(row, mean, dim=0)) for mean in means]
        right += names[cosines.index(max(cosines))] == label
    return right / len(test)


def test_all_rows_as_shots_are_the_nearest_class_mean():
    (train, learnt), (test, wanted) = of_any_length(5, seed=1), of_any_length(50, seed=2)
    expected = accuracy_by_loops(train, learnt, range(len(train)), test, wanted)
    (found,) = few_shot_metrics(train, learnt, test, wanted, shots=[5], draws=3)
    assert found == pytest.approx({"shots": 5, "draws": 3} | dict.fromkeys(("accuracy", "low", "high"), expected))
    assert 0.4 < expected < 0.95


@pytest.mark.parametrize("classifier", ["prototypes", "logistic"])
def test_mean_over_draws_is_near_the_mean_over_all_possible_draws(classifier):
    (train, learnt), (test, wanted) = of_any_length(3, seed=3, classes=3), of_any_length(10, seed=4, classes=3)
    unit = train / np.linalg.norm(train, axis=1, keepdims=True)
    by_class = [np.flatnonzero(learnt == name) for name in sorted(set(learnt.tolist()))]
    accuracies = []
    for chosen in itertools.product(*by_class):
        if classifier == "prototypes":
            accuracies.append(accuracy_by_loops(train, learnt, chosen, test, wanted))
        else:
            fitted = LogisticRegression(C=2.0).fit(unit[list(chosen)], learnt[list(chosen)])
            accuracies.append(fitted.score(test / np.linalg.norm(test, axis=1, keepdims=True), wanted))
    options = {"shots": [1], "draws": 400, "classifier": classifier, "inverse_l2": 2.0, "seed": 1}
    (found,) = few_shot_metrics(train, learnt, test, wanted, **options)
    assert np.std(accuracies) > 0.05
    assert found["low"] < np.mean(accuracies) < found["high"]
    if classifier == "logistic":
        with pytest.warns(ConvergenceWarning, match="max_iter=1"):
            few_shot_metrics(train, learnt, test, wanted, **options | {"draws": 2, "max_iter": 1})
    assert found["high"] - found["low"] == pytest.approx(4 * np.std(accuracies) / 20, rel=0.15)


def test_draws_have_k_different_rows_of_every_class():
    labels = np.array([5, 9, 5, 9, 9, 5, 5])
    chosen = few_shot._draw(labels, 3, 200, np.random.default_rng(0))
    assert chosen.shape == (200, 2, 3)
    assert (labels[chosen] == np.array([5, 9])[None, :, None]).all()
    assert all(len(set(rows)) == 3 for draw in chosen.tolist() for rows in draw)
    counts = np.bincount(chosen[:, 0].ravel(), minlength=7)[[0, 2, 5, 6]]
    assert (abs(counts - 150) < 35).all()  # each of four rows in three of four draws


def test_more_shots_are_better_and_draws_of_a_k_do_not_depend_on_the_others():
    (train, learnt), (test, wanted) = of_any_length(30, seed=1), of_any_length(50, seed=2)
    one, five = few_shot_metrics(train, learnt, test, wanted)
    assert one["high"] < five["low"]
    assert few_shot_metrics(train, learnt, test, wanted, shots=[5]) == [five]
    assert few_shot_metrics(train, learnt, test, wanted, shots=[5], seed=1) != [five]
    rows = [torch.from_numpy(part) for part in (train, learnt, test, wanted)]
    assert few_shot_metrics(*rows) == [one, five]


def test_chunks_and_the_length_of_rows_change_nothing(monkeypatch):
    (train, learnt), (test, wanted) = of_any_length(10, seed=1), of_any_length(50, seed=2)
    found = few_shot_metrics(train, learnt, test, wanted)
    assert few_shot_metrics(train * 1e200, learnt, test * 1e-200, wanted) == found
    monkeypatch.setattr(few_shot, "CHUNK_BYTES", 1)
    assert few_shot_metrics(train, learnt, test, wanted) == found


def test_rows_of_zeros_get_the_smaller_label_and_unseen_labels_count_as_errors(caplog):
    train, learnt = np.eye(2)[[0, 0, 1, 1]], np.array([8, 8, 4, 4])
    (found,) = few_shot_metrics(train, learnt, np.zeros((4, 2)), np.array([4, 4, 4, 8]), shots=[2], draws=2)
    assert found["accuracy"] == 0.75
    (found,) = few_shot_metrics(train, learnt, np.eye(2), np.array([8, 5]), shots=[1], draws=2)
    assert found["accuracy"] == 0.5
    assert "1 of 2 test rows have a label that no training row has" in caplog.text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shots": [1, 3]}, ValueError, "3 rows of every label, for 3 shots, but got 2 of label 4, 1 of label 8"),
        ({"shots": 5}, TypeError, "`shots` to be a sequence of integers, but got 5"),
        ({"draws": 1}, ValueError, "`draws` to be at least 2, but got 1"),
        ({"classifier": "svm"}, ValueError, "`classifier` to be one of .*, but got 'svm'"),
        ({"inverse_l2": "auto"}, TypeError, "`inverse_l2` to be a number"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(options, error, message):
    splits = np.ones((6, 2)), np.array([8, 4, 4, 9, 9, 9]), np.ones((2, 2)), np.array([8, 4])
    with pytest.raises(error, match=message):
        few_shot_metrics(*splits, **options)
