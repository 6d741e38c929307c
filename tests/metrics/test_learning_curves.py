from functools import partial

import numpy as np
import pytest
import torch
from helpers.labelled_points import overlapping
from sklearn.exceptions import ConvergenceWarning

from pml_supcon.metrics import learning_curves, linear_probe_metrics
from pml_supcon.metrics.learning_curves import learning_curve

clustered = partial(overlapping, classes=6, width=12, spread=1.5, first_label=4)


def test_all_labels_are_the_linear_probe_and_fewer_are_worse():
    (train, learnt), (test, wanted) = clustered(600, seed=1), clustered(500, seed=5)
    options = {"inverse_l2": 0.1, "standardize": False}
    points = learning_curve(train, learnt, test, wanted, shares=(0.02, 0.2, 1.0), **options)
    assert [point["rows"] for point in points] == [12, 120, 600]
    assert [point["share"] for point in points] == [0.02, 0.2, 1.0]
    expected = linear_probe_metrics(train, learnt, test, wanted, **options)
    assert {name: points[2][name] for name in expected} == expected
    assert points[0]["top1"] < points[1]["top1"] < points[2]["top1"]
    assert points[0]["top1"] < points[0]["top5"] <= 1.0
    rows = [torch.from_numpy(part) for part in (train, learnt, test, wanted)]
    assert learning_curve(*rows, shares=[0.02, 0.2, 1], **options) == points


def test_every_label_is_in_its_share_with_one_row_at_least(monkeypatch):
    labels = np.random.default_rng(0).permutation(np.repeat([1, 2, 3, 4], [600, 300, 97, 3]))
    features = np.random.default_rng(1).normal(size=(1000, 2))
    seen, fit = [], learning_curves.fit

    def recorded(*arguments):
        seen.append(arguments[:2])
        return fit(*arguments)

    monkeypatch.setattr(learning_curves, "fit", recorded)
    points = learning_curve(features, labels, features, labels, shares=[0.001, 0.01, 0.1], seed=3)
    assert [point["rows"] for point in points] == [4, 10, 100]  # one of each where the share is less
    shares = [[1, 1, 1, 1], [5, 3, 1, 1], [60, 30, 9, 1]]  # of 10: 6, 3, 0.97 and 0.03; of 100: 60, 30, 9.7 and 0.3
    assert [np.bincount(learnt).tolist()[1:] for _, learnt in seen] == shares
    learning_curve(features, labels, features, labels, shares=[0.1], seed=4)
    assert not np.array_equal(seen[-1][0], seen[2][0])


def test_unseen_labels_and_no_convergence_are_warnings(caplog):
    (train, learnt), (test, wanted) = clustered(100, seed=1), clustered(50, seed=5)
    with pytest.warns(ConvergenceWarning, match="max_iter=1"):
        found = learning_curve(train, learnt, test, np.where(wanted == 4, 99, wanted), shares=[1.0], max_iter=1)
    assert len(caplog.records) == 1
    assert f"{(wanted == 4).sum()} of 50 test rows have a label that no training row has" in caplog.text
    assert found[0]["top5"] <= (wanted != 4).mean()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shares": [1, 1.01]}, ValueError, "`shares` to be in \\(0, 1], but got 1.01"),
        ({"shares": 0.1}, TypeError, "`shares` to be a sequence of numbers, but got 0.1"),
        ({"inverse_l2": "auto"}, TypeError, "`inverse_l2` to be a number, but got 'auto'"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(options, error, message):
    features, labels = clustered(30, seed=1)
    with pytest.raises(error, match=message):
        learning_curve(features, labels, features, labels, **options)
