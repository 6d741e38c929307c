from functools import partial

import numpy as np
import pytest
from helpers.labelled_points import overlapping
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from pml_supcon._strata import hold_out
from pml_supcon.metrics.probe_selection import choose_inverse_l2

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
    assert found == (0.1, pytest.approx(accuracy), False)
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
    assert found == (10.0, {0.1: 1.0, 1.0: 1.0, 10.0: 1.0}, False)
    assert not caplog.records  # the accuracy at the edge is no better than beside it


def test_where_likelihoods_are_equal_too_the_stronger_penalty_is_chosen(caplog):
    labels = np.repeat([0, 1], [30, 10])
    found = choose_inverse_l2(np.ones((40, 3)), labels, candidates=(10.0, 0.1, 1.0))  # constant features
    assert found == (0.1, {0.1: 0.75, 1.0: 0.75, 10.0: 0.75}, False)
    assert not caplog.records


@pytest.mark.parametrize(
    ("candidates", "chosen", "beyond"),
    [((1e-6, 1e-4, 1.0), 1.0, 100.0), ((1e-3, 1e3, 1e4), 1e-3, 1e-5)],
)
def test_an_edge_that_is_clearly_better_is_named(candidates, chosen, beyond, caplog):
    """A strong penalty finds no image of a rare label; a weak one follows the noise of many features."""
    rng = np.random.default_rng(0)
    if chosen == 1.0:
        labels = np.repeat([0, 1], [600, 200])
        features = rng.normal(size=(800, 4)) + labels[:, None]
    else:
        labels = np.arange(400) % 2
        features = rng.normal(size=(400, 300)) + labels[:, None] * 0.15
    found = choose_inverse_l2(features, labels, candidates=candidates, held_out=0.5)
    assert found.inverse_l2 == chosen
    assert found.at_edge
    assert f"inverse_l2={chosen:g} was chosen, by {len(labels) // 2} held-out rows, and is at the edge" in caplog.text
    caplog.clear()
    wider = choose_inverse_l2(features, labels, candidates=(*candidates, beyond), held_out=0.5)
    assert not wider.at_edge
    assert not caplog.records


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
