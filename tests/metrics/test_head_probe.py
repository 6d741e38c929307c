import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pml_supcon.metrics.head_probe import majority_share, transformation_probe_metrics


def variants(rows, *, seed, number=3, width=5, apart=0.6):
    """Return features of the same images under each change, which shifts them in its direction."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(rows, width)) * 10.0 ** np.arange(-2, width - 2)
    directions = np.random.default_rng(9).normal(size=(number, width)) * 10.0 ** np.arange(-2, width - 2)
    return [base + apart * direction + 0.0 for direction in directions]


@pytest.mark.parametrize("number", [2, 4])
def test_accuracy_agrees_with_scikit_learn(number):
    train, test = variants(80, seed=1, number=number), variants(50, seed=2, number=number)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
    probe.fit(np.concatenate(train), [change for change in range(number) for _ in range(80)])
    right = sum((probe.predict(rows) == change).sum() for change, rows in enumerate(test))
    found = transformation_probe_metrics(train, tuple(test))
    assert found == pytest.approx({"accuracy": right / (50 * number), "chance": 1 / number})
    assert 1 / number < found["accuracy"] < 1
    assert transformation_probe_metrics([torch.from_numpy(rows) for rows in train], test) == found


def test_options_reach_the_probe():
    train, test = variants(80, seed=1), variants(50, seed=2)
    base = transformation_probe_metrics(train, test)
    assert transformation_probe_metrics(train, test, inverse_l2=1e-4) != base
    with pytest.warns(ConvergenceWarning, match="set standardize=True"):
        transformation_probe_metrics(train, test, max_iter=2, standardize=False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": np.ones((2, 4, 3))}, TypeError, "`train` to be a sequence of variants, but got ndarray"),
        ({"test": [np.eye(3)] * 3}, ValueError, "same number of variants, but got 2 and 3"),
        ({"train": [np.eye(3), np.eye(3)[:2]]}, ValueError, r"same images, but got shapes \(3, 3\) and \(2, 3\)"),
        ({"test": [np.ones((3, 2))] * 2}, ValueError, r"the same width, but got shapes \(6, 3\) and \(6, 2\)"),
        ({"inverse_l2": "auto"}, TypeError, "`inverse_l2` to be a number, but got 'auto'"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(change, error, message):
    valid = {"train": [np.eye(3), -np.eye(3)], "test": [np.eye(3), -np.eye(3)]}
    with pytest.raises(error, match=message):
        transformation_probe_metrics(**(valid | change))


def test_majority_share():
    assert majority_share(torch.tensor([3, 3, 5, 9, 3])) == 0.6
    with pytest.raises(ValueError, match=r"`labels` to hold labels \(N,\), but got shape \(0,\)"):
        majority_share(np.zeros(0, int))
