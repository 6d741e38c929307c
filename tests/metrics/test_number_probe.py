import math

import numpy as np
import pytest
import torch

from pml_supcon.metrics import number_probe_metrics


def noisy_numbers(rows, *, seed, width=12):
    """Return features in columns of different scales, and two numbers of different scales and noise."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(rows, width))
    weights = np.random.default_rng(99).normal(size=(width, 2)) * [1, 100]
    noise = rng.normal(size=(rows, 2)) * [0.5, 250]
    return points * 10.0 ** np.linspace(-2, 2, width) + 3, points @ weights + noise + [5, 1000]


def ridge(x, y, penalty):
    """Return weights and intercept, by the normal equations with an intercept that is not penalised."""
    wide = np.column_stack([x, np.ones(len(x))])
    penalties = np.diag([penalty] * x.shape[1] + [0.0])
    solved = np.linalg.solve(wide.T @ wide + penalties, wide.T @ y)
    return solved[:-1], solved[-1]


def ranks(values):
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])


def scores_by_loops(train, learnt, test, wanted):
    """Return the scores of one column, and its penalty over the rows: leave-one-out with one fit for each row."""
    mean, scale = train.mean(axis=0), train.std(axis=0)
    x, z = (train - mean) / scale, (test - mean) / scale
    errors = {}
    for power in range(-6, 3):
        errors[power] = 0.0
        for row in range(len(x)):
            others = np.arange(len(x)) != row
            weights, intercept = ridge(x[others], learnt[others], 10.0**power * len(x))
            errors[power] += (x[row] @ weights + intercept - learnt[row]) ** 2
    power = min(errors, key=errors.get)
    weights, intercept = ridge(x, learnt, 10.0**power * len(x))
    given = z @ weights + intercept
    r2 = 1 - ((wanted - given) ** 2).sum() / ((wanted - wanted.mean()) ** 2).sum()
    found = {"r2": r2, "spearman": np.corrcoef(ranks(wanted), ranks(given))[0, 1], "mae": abs(wanted - given).mean()}
    return found, power


def test_agrees_with_leave_one_out_by_loops_and_averages_columns():
    (train, learnt), (test, wanted) = noisy_numbers(40, seed=1), noisy_numbers(30, seed=2)
    expected, powers = zip(*(scores_by_loops(train, learnt[:, k], test, wanted[:, k]) for k in (0, 1)), strict=True)
    assert powers[0] != powers[1]  # each column has its own penalty
    for k in (0, 1):
        found = number_probe_metrics(train, learnt[:, k], test, wanted[:, k])
        assert found == pytest.approx(expected[k])
        assert found == pytest.approx(number_probe_metrics(train, learnt[:, [k]], test, wanted[:, [k]]))
    found = number_probe_metrics(train, torch.from_numpy(learnt), test, torch.from_numpy(wanted))
    assert found == pytest.approx({name: (expected[0][name] + expected[1][name]) / 2 for name in found})
    assert expected[0]["r2"] > 0.8 > expected[1]["r2"] > 0


def test_the_unit_of_labels_changes_only_the_error():
    (train, learnt), (test, wanted) = noisy_numbers(40, seed=1), noisy_numbers(30, seed=2)
    found = number_probe_metrics(train, learnt[:, 0], test, wanted[:, 0])
    other = number_probe_metrics(train, learnt[:, 0] * 1000 + 5, test, wanted[:, 0] * 1000 + 5)
    assert other == pytest.approx(found | {"mae": found["mae"] * 1000})


def test_features_without_information_have_no_rank_correlation():
    found = number_probe_metrics(np.ones((4, 2)), np.arange(4), np.ones((2, 2)), np.array([1, 2]))
    assert found == pytest.approx({"r2": 0.0, "spearman": 0.0, "mae": 0.5})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_wide(dtype):
    (train, learnt), (test, wanted) = noisy_numbers(40, seed=1), noisy_numbers(30, seed=2)
    train, test, learnt = (torch.from_numpy(each).to(dtype) for each in (train, test, learnt))
    wide = number_probe_metrics(train.double(), learnt.double(), test.double(), wanted)
    assert number_probe_metrics(train, learnt, test, wanted) == wide


FOUR = np.arange(4.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train_labels": FOUR[:3]}, ValueError, r"`train_labels` to have the shape \(4,\) or \(4, K\), .* got \(3,\)"),
        ({"test_labels": np.eye(4)}, ValueError, r"same number of columns, but got shapes \(4, 1\) and \(4, 4\)"),
        ({"train_labels": FOUR > 1}, TypeError, "`train_labels` to be numbers, but got bool"),
        ({"train_labels": FOUR * math.nan}, ValueError, "`train_labels` to be finite, .* 4 of 4 rows"),
        ({"train_labels": FOUR * 1e160}, ValueError, "`train_labels` whose squares have a finite sum"),
        ({"train_features": np.eye(4) * 1e200}, ValueError, r"`train_features` whose squares .* up to 1e\+200$"),
        (
            {"train_labels": FOUR * 0 + 7},
            ValueError,
            "`train_labels` .* two values in each column, .* only 7 in column 0",
        ),
        ({"test_labels": FOUR * 0}, ValueError, "`test_labels` to have at least two values in each column"),
        ({"test_features": np.eye(4)[:, :3]}, ValueError, r"same width, but got shapes \(4, 4\) and \(4, 3\)"),
        ({"train_features": np.eye(4, dtype=int)}, TypeError, "`train_features` to be floating point, but got int64"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(change, error, message):
    valid = {"train_features": np.eye(4), "train_labels": FOUR, "test_features": np.eye(4), "test_labels": FOUR}
    with pytest.raises(error, match=message):
        number_probe_metrics(**valid | change)
