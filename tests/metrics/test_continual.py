import numpy as np
import pytest
import torch

from pml_supcon.metrics import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    class_il_accuracies,
    forgetting,
    task_il_accuracies,
)

OF_MATRIX = (average_accuracy, forgetting, backward_transfer, average_incremental_accuracy)
OF_SCORES = (class_il_accuracies, task_il_accuracies)


def random_matrix(seed, tasks):
    matrix = np.random.default_rng(seed).random((tasks, tasks))
    matrix[np.triu_indices(tasks, 1)] = np.nan
    return matrix


def average_by_loops(matrix):
    return sum(matrix[-1].tolist()) / len(matrix)


def forgetting_by_loops(matrix):
    last, falls = len(matrix) - 1, []
    for k in range(last):
        best = max(float(matrix[t, k]) for t in range(k, last))  # not after the last task
        falls.append(best - float(matrix[last, k]))
    return sum(falls) / last


def backward_transfer_by_loops(matrix):
    last = len(matrix) - 1
    return sum(float(matrix[last, k] - matrix[k, k]) for k in range(last)) / last


def incremental_by_loops(matrix):
    means = [sum(float(matrix[t, k]) for k in range(t + 1)) / (t + 1) for t in range(len(matrix))]
    return sum(means) / len(means)


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_scores_of_a_matrix_agree_with_loops(tasks):
    loops = (average_by_loops, forgetting_by_loops, backward_transfer_by_loops, incremental_by_loops)
    for seed in range(5):
        matrix = random_matrix(seed, tasks)
        for score, by_loops in zip(OF_MATRIX, loops, strict=True):
            assert score(matrix) == pytest.approx(by_loops(matrix), abs=1e-12)
        assert backward_transfer(matrix) >= -forgetting(matrix)
        # accuracies above the diagonal, of tasks to come, change nothing
        full = np.where(np.isnan(matrix), 1.0, matrix)
        assert [score(torch.from_numpy(full)) for score in OF_MATRIX] == [score(matrix) for score in OF_MATRIX]


def test_forgetting_counts_from_the_best_before_the_last_task():
    matrix = np.array([[0.5, 0, 0], [0.9, 0.7, 0], [0.6, 0.8, 1.0]])  # task 0 is best after task 1, and task 1 improves
    assert forgetting(matrix) == pytest.approx((0.3 - 0.1) / 2)
    assert backward_transfer(matrix) == pytest.approx((0.1 + 0.1) / 2)


def test_a_single_task_is_not_forgotten():
    matrix = np.array([[0.75]])
    assert [score(matrix) for score in OF_MATRIX] == [0.75, 0.0, 0.0, 0.75]


def test_average_accuracy_reads_the_last_row_only():
    assert average_accuracy(np.array([[np.nan, np.nan], [0.5, 1.0]])) == 0.75


def accuracies_by_loops(scores, labels, tasks, *, own):
    found = []
    for task in tasks:
        hits = []
        for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
            if label in task:
                competing = task if own else [each for some in tasks for each in some]
                hits.append(label == max(competing, key=lambda column, row=row: row[column]))
        found.append(sum(hits) / len(hits))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_accuracies_of_tasks_agree_with_loops(seed):
    rng = np.random.default_rng(seed)
    classes = rng.permutation(9).tolist()
    tasks = [classes[:2], classes[2:3], classes[3:7]]  # two of the nine classes are still to come
    labels = np.concatenate([np.arange(9), rng.integers(9, size=200)])
    scores = rng.normal(size=(209, 9)).astype(np.float32) + 1.5 * np.eye(9, dtype=np.float32)[labels]
    class_il = class_il_accuracies(scores, labels, tasks)
    task_il = task_il_accuracies(torch.from_numpy(scores), torch.from_numpy(labels).int(), tasks)
    assert class_il.tolist() == pytest.approx(accuracies_by_loops(scores, labels, tasks, own=False))
    assert task_il.tolist() == pytest.approx(accuracies_by_loops(scores, labels, tasks, own=True))
    assert (task_il >= class_il).all()
    assert (task_il > class_il).any()
    assert task_il[1] == 1  # a task of one class
    # with one task both are the accuracy; columns and rows of other classes change nothing
    known = np.isin(labels, tasks[2])
    plain = (scores[known][:, tasks[2]].argmax(1) == [tasks[2].index(each) for each in labels[known]]).mean()
    assert [of(scores, labels, tasks[2:]).item() for of in OF_SCORES] == pytest.approx([plain, plain])


def test_the_first_of_equal_scores_is_predicted():
    scores = np.zeros((4, 4))
    assert class_il_accuracies(scores, np.arange(4), [[2, 0], [1, 3]]).tolist() == [0.5, 0.0]
    assert task_il_accuracies(scores, np.arange(4), [[2, 0], [1, 3]]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("of", OF_SCORES)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scores": np.eye(4, dtype=int)}, TypeError, "`scores` to be floating point, but got int64"),
        ({"scores": np.full((4, 4), np.nan)}, ValueError, "`scores` to be finite, but got NaN or infinity in 4 of 4"),
        ({"labels": np.arange(3)}, ValueError, r"`labels` .* shape \(4,\), but got shape \(3,\)"),
        ({"labels": np.arange(1, 5)}, ValueError, "`labels` to be columns of `scores`, from 0 to 3, but got 1 to 4"),
        ({"labels": np.array([0, 1, 2, 2])}, ValueError, r"rows of each task, but got none of `tasks\[2\]`, \[3\]"),
        ({"tasks": []}, ValueError, "`tasks` to have a task, but got none"),
        ({"tasks": "01"}, TypeError, "`tasks` to be a sequence of sequences of classes, but got '01'"),
        ({"tasks": [0, 1]}, TypeError, r"`tasks\[0\]` to be a sequence of classes, but got 0"),
        ({"tasks": [[0, 1], []]}, ValueError, r"but got none of `tasks\[1\]`, \[\]"),
        ({"tasks": [[0, 1], [1, 2]]}, ValueError, "each class once, but class 1 is in tasks 0 and 1"),
        ({"tasks": [[0, 0]]}, ValueError, "each class once, but class 0 is in tasks 0 and 0"),
        ({"tasks": [[0, 4]]}, ValueError, r"`tasks\[0\]` to be between 0 and 3, but got 4"),
        ({"tasks": [[0.0, 1.0]]}, TypeError, r"`tasks\[0\]` to be an integer, but got 0.0"),
    ],
)
def test_errors_of_scores_say_what_was_expected_and_what_came(of, change, error, message):
    valid = {"scores": np.eye(4), "labels": np.arange(4), "tasks": [[0, 1], [2], [3]]}
    with pytest.raises(error, match=message):
        of(**valid | change)


@pytest.mark.parametrize("of", OF_MATRIX)
@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        ([[1.0]], TypeError, "`matrix` to be a torch tensor or a numpy array, but got list"),
        (np.array([[1]]), TypeError, "`matrix` to be floating point, but got int64"),
        (np.zeros((2, 3)), ValueError, r"`matrix` to have the shape \(T, T\), T >= 1, but got \(2, 3\)"),
        (np.zeros((0, 0)), ValueError, r"but got \(0, 0\)"),
        (np.array([[0.5, np.nan], [np.nan, 0.5]]), ValueError, r"accuracies in \[0, 1\] .*, but got nan at \[1, 0\]"),
        (np.array([[np.nan]]), ValueError, r"but got nan at \[0, 0\]"),
        (np.array([[50.0, 0], [50, 50]]), ValueError, r"accuracies in \[0, 1\] .*, but got 50 at \[[01], 0\]"),
    ],
)
def test_errors_of_a_matrix_say_what_was_expected_and_what_came(of, matrix, error, message):
    with pytest.raises(error, match=message):
        of(matrix)
