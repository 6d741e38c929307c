import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from pml_supcon.metrics import shot_accuracies


def accuracies_by_loops(predictions, labels, train_labels):
    groups = {"many_shot": [], "medium_shot": [], "few_shot": [], "balanced": []}
    for label in set(labels.tolist()):
        hits = [int(p == label) for p, right in zip(predictions, labels, strict=True) if right == label]
        shots = sum(int(each == label) for each in train_labels)
        group = "many_shot" if shots > 100 else "few_shot" if shots < 20 else "medium_shot"
        for name in (group, "balanced"):
            groups[name].append(sum(hits) / len(hits))
    return {name: sum(values) / len(values) for name, values in groups.items() if values}


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_loops_and_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    train_labels = np.repeat(rng.permutation(30) * 7 - 50, rng.permutation(30) * 7 + 1)
    labels = rng.choice(np.unique(train_labels), 300)
    predictions = np.where(rng.random(300) < 0.6, labels, rng.permutation(labels))
    found = shot_accuracies(torch.from_numpy(predictions), torch.from_numpy(labels).int(), train_labels)
    assert found == pytest.approx(accuracies_by_loops(predictions, labels, train_labels))
    assert found["balanced"] == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert len(set(found.values())) == 4


def test_the_limits_belong_to_the_medium_classes():
    labels, predictions = np.array([0, 1, 2, 3]), np.array([0, 9, 2, 9])
    # 101 and 19 rows are many and few; 100 and 20 are medium.
    found = shot_accuracies(predictions, labels, np.repeat(labels, [101, 100, 20, 19]))
    assert found == {"many_shot": 1.0, "medium_shot": 0.5, "few_shot": 0.0, "balanced": 0.5}


def test_groups_without_test_rows_are_absent_and_classes_without_training_rows_are_few_shot(caplog):
    train_labels = np.repeat([0, 1, 2], [500, 50, 5])
    found = shot_accuracies(np.array([0, 1]), np.array([0, 0]), train_labels)
    assert found == {"many_shot": 0.5, "balanced": 0.5}
    assert not caplog.records
    found = shot_accuracies(np.array([0, 1, 0]), np.array([0, 0, 9]), train_labels)
    assert found == {"many_shot": 0.5, "few_shot": 0.0, "balanced": 0.25}
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 3 test rows have a label that no training row has (1 labels): their classes count as few-shot."
    ]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"predictions": np.array([0])}, ValueError, r"`predictions` .* shape \(3,\), but got shape \(1,\)"),
        ({"predictions": np.eye(3)}, TypeError, "`predictions` to be integers, but got float64"),
        ({"labels": np.zeros((3, 1), int)}, ValueError, r"`labels` to be 1-D and not empty, but got shape \(3, 1\)"),
        (
            {"train_labels": np.array([], int)},
            ValueError,
            r"`train_labels` to be 1-D and not empty, but got shape \(0,\)",
        ),
        ({"labels": [0, 1, 2]}, TypeError, "`labels` to be a torch tensor or a numpy array, but got list"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(change, error, message):
    valid = {"predictions": np.array([0, 1, 1]), "labels": np.array([0, 1, 2]), "train_labels": np.array([0, 1, 2])}
    with pytest.raises(error, match=message):
        shot_accuracies(**valid | change)
