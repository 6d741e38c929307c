import numpy as np
import pytest
import torch
from helpers.labelled_points import overlapping

from pml_supcon.metrics import level_probe_metrics, linear_probe_metrics


def with_levels(rows, *, seed):
    points, fine = overlapping(rows, seed=seed, classes=8, width=6, spread=1.5)
    return points, np.stack([fine // 4, fine // 2, fine], axis=1)


def test_each_level_has_the_scores_of_its_own_probe():
    (train, learnt), (test, wanted) = with_levels(200, seed=1), with_levels(100, seed=2)
    for options in ({}, {"inverse_l2": 0.01, "standardize": False}):
        found = level_probe_metrics(
            torch.from_numpy(train), torch.from_numpy(learnt).int(), test, torch.from_numpy(wanted), **options
        )
        expected = {}
        for level, name in enumerate(("level1", "level2", "level3")):
            scores = linear_probe_metrics(
                train, learnt[:, level], test, wanted[:, level], **{"inverse_l2": "auto"} | options
            )
            expected |= {f"{name}/{key}": value for key, value in scores.items()}
        assert found == expected
        assert list(found) == [f"level{level}/{top}" for level in (1, 2, 3) for top in ("top1", "top5")]
    assert found["level1/top1"] > found["level2/top1"] > found["level3/top1"] > 0.3


def test_a_level_of_one_label_predicts_it_and_unseen_labels_are_errors(caplog):
    train, learnt = np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.array([[7, 5], [7, 5], [7, 9], [7, 9]])
    test, wanted = np.array([[3.0], [-3.0], [3.0], [3.0]]), np.array([[8, 9], [7, 5], [7, 9], [7, 6]])
    found = level_probe_metrics(train, learnt, test, wanted, inverse_l2=1.0)
    assert found == {"level1/top1": 0.75, "level1/top5": 0.75, "level2/top1": 0.75, "level2/top5": 0.75}
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 4 test rows have a label that no training row has (1 labels): they count as errors."
    ] * 2


LEVELS = np.array([[0, 0], [0, 1], [1, 2], [1, 3]])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train_labels": LEVELS[:, 0]}, ValueError, r"`train_labels` to have the shape \(4, L\), .* but got \(4,\)"),
        ({"test_labels": LEVELS[:3]}, ValueError, r"`test_labels` to have the shape \(4, L\), .* but got \(3, 2\)"),
        ({"test_labels": LEVELS[:, :1]}, ValueError, r"same number of levels, but got shapes \(4, 2\) and \(4, 1\)"),
        ({"train_labels": LEVELS * 1.0}, TypeError, "`train_labels` to be integers, but got float64"),
        ({"test_features": np.eye(4)[:, :3]}, ValueError, r"same width, but got shapes \(4, 4\) and \(4, 3\)"),
        ({"max_iter": 0}, ValueError, "`max_iter` to be at least 1, but got 0"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(change, error, message):
    valid = {"train_features": np.eye(4), "train_labels": LEVELS, "test_features": np.eye(4), "test_labels": LEVELS}
    with pytest.raises(error, match=message):
        level_probe_metrics(**valid | change)
