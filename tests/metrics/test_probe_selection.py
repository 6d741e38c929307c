from functools import partial

import numpy as np
import pytest
from helpers.labelled_points import overlapping
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler

from pml_supcon.metrics.probe_selection import choose_inverse_l2
from pml_supcon.metrics.strata import draw_rows, hold_out

#: Many features, so that a weak penalty overfits.
noisy = partial(overlapping, seed=0, classes=3, width=60, apart=0.2, first_label=5)


def by_hand(features, labels, values, *, held_out, seed):
    """Return the held-out accuracy and loss of each value."""
    fitted, held = hold_out(labels, held_out, seed)
    scaler = StandardScaler().fit(features[fitted])
    train, test = scaler.transform(features[fitted]), scaler.transform(features[held])
    accuracy, loss = {}, {}
    for value in values:
        classifier = LogisticRegression(C=value, max_iter=1000).fit(train, labels[fitted])
        accuracy[value] = classifier.score(test, labels[held])
        loss[value] = log_loss(labels[held], classifier.predict_proba(test))
    return accuracy, loss


def test_likelihood_of_the_held_out_rows_decides_rather_than_accuracy(caplog):
    features, labels = noisy(100)
    accuracy, loss = by_hand(features, labels, (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0), held_out=0.3, seed=4)
    found = choose_inverse_l2(features, labels, candidates=list(accuracy)[::-1], held_out=0.3, seed=4)
    assert found == (0.1, pytest.approx(accuracy))
    assert list(found.tried) == sorted(accuracy)
    assert not caplog.records  # the choice is not at the edge of the candidates
    assert found.tried != choose_inverse_l2(features, labels, held_out=0.3, seed=3).tried
    assert min(loss, key=loss.get) == 0.1
    assert accuracy[0.1] < max(accuracy.values())


def test_likelihood_decides_where_all_are_right(caplog):
    features, labels = np.repeat([[-1.0], [1.0]], 20, axis=0), np.repeat([0, 1], 20)
    assert choose_inverse_l2(features, labels, candidates=[2]).inverse_l2 == 2.0
    assert not caplog.records  # a single candidate is at no edge
    found = choose_inverse_l2(features, labels, candidates=(10.0, 0.1, 1.0))
    assert found == (10.0, {0.1: 1.0, 1.0: 1.0, 10.0: 1.0})
    text = "inverse_l2=10 was chosen, by 4 held-out rows, and is at the edge of the candidates (0.1 to 10)"
    assert text in caplog.text


def test_where_likelihoods_are_equal_too_the_stronger_penalty_is_chosen(caplog):
    labels = np.repeat([0, 1], [30, 10])
    found = choose_inverse_l2(np.ones((40, 3)), labels, candidates=(10.0, 0.1, 1.0))  # constant features
    assert found == (0.1, {0.1: 0.75, 1.0: 0.75, 10.0: 0.75})
    assert "inverse_l2=0.1 was chosen" in caplog.text


def test_held_out_part_has_its_share_of_every_label():
    labels = np.random.default_rng(0).permutation(np.repeat([3, 5, 8], [200, 100, 40]))
    fitted, held = hold_out(labels, 0.25, 0)
    assert sorted([*fitted, *held]) == list(range(340))
    _, wanted = next(StratifiedShuffleSplit(1, test_size=0.25, random_state=0).split(labels, labels))
    assert np.bincount(labels[held]).tolist() == np.bincount(labels[wanted]).tolist()
    assert (hold_out(labels, 0.25, 0)[1] == held).all()
    assert (hold_out(labels, 0.25, 1)[1] != held).any()


def test_every_label_keeps_a_fitted_row():
    labels = np.array([0] * 2 + [1] + [2] * 17)
    for seed in range(20):
        fitted, held = hold_out(labels, 0.85, seed)
        assert len(held) == 17
        assert np.bincount(labels[held], minlength=3).tolist() == [1, 0, 16]
        assert set(labels[fitted]) == {0, 1, 2}
    with pytest.raises(ValueError, match=r"0.9 of 20 rows are 18, of 17 that can be held out \(3 labels\)"):
        hold_out(labels, 0.9, 0)


def test_drawn_rows_are_any_of_a_label():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], [10, 30]))
    seen = np.concatenate([draw_rows(labels, 8, np.random.default_rng(seed), at_least=1) for seed in range(400)])
    counts = np.bincount(seen, minlength=40)
    assert (abs(counts - 80) < 40).all()  # each of 40 rows in a fifth of 400 draws


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"candidates": []}, ValueError, "`candidates` to have at least one value, but got none"),
        ({"candidates": [1.0, 0]}, ValueError, "`candidates` to be above 0, but got 0"),
        ({"held_out": 1.5}, ValueError, "`held_out` to be in \\(0, 1\\), but got 1.5"),
        ({"labels": np.arange(20)}, ValueError, r"0.1 of 20 rows are 2, of 0 that can be held out \(20 labels\)"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(options, error, message):
    features, labels = noisy(20)
    with pytest.raises(error, match=message):
        choose_inverse_l2(**({"features": features, "labels": labels} | options))
