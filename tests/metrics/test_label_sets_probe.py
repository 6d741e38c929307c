import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, log_loss
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pml_supcon.metrics import label_sets_probe_metrics
from pml_supcon.metrics.probe_selection import CANDIDATES, HELD_OUT


def noisy_sets(rows, *, seed, labels=4, width=6, shift=0.5):
    """Return features in columns of different scales, and sets of labels that follow them with noise."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(rows, width))
    odds = points @ np.random.default_rng(99).normal(size=(width, labels)) + rng.normal(size=(rows, labels))
    return points * 10.0 ** np.linspace(-2, 2, width) + 3, odds > shift * np.arange(labels)


def average_precision(scores, right):
    """Return the mean of the precisions at the ranks of the right rows, by a loop; scores must differ."""
    hits, precisions = 0, []
    for rank, row in enumerate(sorted(range(len(scores)), key=lambda row: -scores[row]), start=1):
        hits += right[row]
        precisions += [hits / rank] if right[row] else []
    return sum(precisions) / len(precisions)


def f1(right, predicted):
    both, one = (right & predicted).sum(), (right ^ predicted).sum()
    return 2 * both / (2 * both + one)


def test_agrees_with_one_versus_rest_and_with_loops():
    (train, learnt), (test, wanted) = noisy_sets(200, seed=1), noisy_sets(100, seed=2)
    found = label_sets_probe_metrics(train, learnt, test, wanted, inverse_l2=0.1)
    probe = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(C=0.1))).fit(train, learnt * 1)
    scores, predicted = probe.decision_function(test), probe.predict(test)
    expected = {
        "map": average_precision_score(wanted, scores, average="macro"),
        "f1_micro": f1_score(wanted, predicted, average="micro"),
        "f1_macro": f1_score(wanted, predicted, average="macro"),
    }
    assert found == pytest.approx(expected)
    assert len({round(value, 3) for value in found.values()}) == 3
    assert 0.5 < min(found.values()) < max(found.values()) < 0.95

    assert found["map"] == pytest.approx(
        np.mean([average_precision(s, r) for s, r in zip(scores.T, wanted.T, strict=True)])
    )
    assert found["f1_micro"] == pytest.approx(f1(wanted, predicted > 0))
    assert found["f1_macro"] == pytest.approx(
        np.mean([f1(r, p > 0) for r, p in zip(wanted.T, predicted.T, strict=True)])
    )


def test_auto_chooses_one_penalty_by_held_out_cross_entropy():
    (train, learnt), (test, wanted) = noisy_sets(80, seed=1, width=60), noisy_sets(100, seed=2, width=60)
    held = np.sort(np.random.default_rng(0).permutation(80)[: round(HELD_OUT * 80)])
    fitted = np.setdiff1d(np.arange(80), held)
    losses = {}
    for value in CANDIDATES:
        probe = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(C=value, max_iter=1000)))
        shares = probe.fit(train[fitted], learnt[fitted] * 1).predict_proba(train[held])
        losses[value] = np.mean([log_loss(r, s, labels=[0, 1]) for r, s in zip(learnt[held].T, shares.T, strict=True)])
    chosen = min(losses, key=losses.get)
    assert chosen == 0.1
    scores = {value: label_sets_probe_metrics(train, learnt, test, wanted, inverse_l2=value) for value in CANDIDATES}
    assert label_sets_probe_metrics(train, learnt, test, wanted, seed=0) == scores[chosen]
    assert [value for value in CANDIDATES if scores[value] == scores[chosen]] == [chosen]


def test_labels_of_no_or_every_training_row_have_a_constant_score():
    (train, learnt), (test, wanted) = noisy_sets(100, seed=1), noisy_sets(40, seed=2)
    learnt[:, 0], learnt[:, 1] = False, True
    found = label_sets_probe_metrics(train, learnt, test, wanted, inverse_l2=1.0)
    plain = [label_sets_probe_metrics(train, learnt[:, [c]], test, wanted[:, [c]], inverse_l2=1.0) for c in (2, 3)]
    # Equal scores: the average precision is the label's share. No row is predicted for the first, all for the second.
    share = wanted.mean(axis=0)
    assert found["map"] == pytest.approx(np.mean([share[0], share[1], *(each["map"] for each in plain)]))
    second = 2 * share[1] / (1 + share[1])
    assert found["f1_macro"] == pytest.approx(np.mean([0, second, *(each["f1_macro"] for each in plain)]))


def test_labels_without_a_score_in_the_test_rows_are_left_out():
    (train, learnt), (test, wanted) = noisy_sets(100, seed=1), noisy_sets(40, seed=2)
    learnt[:, 0] = False
    wanted[:, 0] = False  # neither average precision nor F1
    found = label_sets_probe_metrics(train, learnt, test, wanted, inverse_l2=1.0)
    others = label_sets_probe_metrics(train, learnt[:, 1:], test, wanted[:, 1:], inverse_l2=1.0)
    assert found == pytest.approx(others)
    wanted[:, 0] = learnt[:, 0] = True  # F1 only, of 1
    found = label_sets_probe_metrics(train, learnt, test, wanted, inverse_l2=1.0)
    assert found["map"] == pytest.approx(others["map"])
    assert found["f1_macro"] == pytest.approx((1 + 3 * others["f1_macro"]) / 4)


def test_one_label_is_scored_as_one():
    train, learnt = np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.array([[0], [0], [1], [1]])
    test, wanted = np.array([[-3.0], [2.0], [3.0], [4.0]]), np.array([[1], [0], [1], [0]])
    # Ranks: 4.0, 3.0 (right), 2.0, -3.0 (right). Predicted: all but the first; one of three is right, one is missed.
    expected = {"map": (1 / 2 + 2 / 4) / 2, "f1_micro": 2 / 5, "f1_macro": 2 / 5}
    assert label_sets_probe_metrics(train, learnt, test, wanted, inverse_l2=1.0) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bfloat16, torch.float64])
def test_zeros_and_ones_of_any_dtype_are_sets(dtype):
    (train, learnt), (test, wanted) = noisy_sets(60, seed=1), noisy_sets(40, seed=2)
    found = label_sets_probe_metrics(
        torch.from_numpy(train), torch.from_numpy(learnt).to(dtype), test, torch.from_numpy(wanted).to(dtype)
    )
    assert found == label_sets_probe_metrics(train, learnt, test, wanted)


HALF = np.repeat([[0, 1], [1, 0]], 4, axis=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"train_labels": HALF[:, 0]},
            ValueError,
            r"`train_labels` to have the shape \(8, C\), C >= 1, but got \(8,\)",
        ),
        ({"test_labels": HALF[:5]}, ValueError, r"`test_labels` to have the shape \(8, C\), C >= 1, but got \(5, 2\)"),
        ({"test_labels": HALF[:, :1]}, ValueError, r"same number of labels, but got shapes \(8, 2\) and \(8, 1\)"),
        ({"train_labels": HALF * 2}, ValueError, "`train_labels` to be bool, or 0 and 1, but got 2$"),
        ({"train_labels": HALF * math.nan}, ValueError, "`train_labels` to be bool, or 0 and 1, but got nan$"),
        ({"train_labels": HALF * 1j}, TypeError, "`train_labels` to be bool, or 0 and 1, but got complex128"),
        ({"train_labels": HALF * 0}, ValueError, "`train_labels` .* some rows have and others lack, .* 2 labels of 8"),
        (
            {"test_labels": HALF * 0 + 1},
            ValueError,
            "`test_labels` .* that some rows have and others lack, but got none",
        ),
        ({"test_features": np.eye(8)[:, :3]}, ValueError, r"same width, but got shapes \(8, 8\) and \(8, 3\)"),
        ({"train_features": np.eye(8) * 1e200}, ValueError, r"`features` whose squares have a finite sum, .* 1e\+200$"),
        (
            {"test_features": np.full((8, 8), 1e308), "inverse_l2": 1e9, "standardize": False},
            ValueError,
            "`features` whose squares are finite, but scikit-learn found: Input contains infinity",
        ),
        ({"inverse_l2": "best"}, ValueError, "`inverse_l2` to be a number or \"auto\", but got 'best'"),
        (
            {"train_labels": np.eye(8)[:, [2, 2]], "seed": 0},
            ValueError,
            "`train_labels` to have a label that differs between rows after a tenth of them is held out",
        ),
    ],
)
def test_errors_say_what_was_expected_and_what_came(change, error, message):
    valid = {"train_features": np.eye(8), "train_labels": HALF, "test_features": np.eye(8), "test_labels": HALF}
    with pytest.raises(error, match=message):
        label_sets_probe_metrics(**valid | change)
