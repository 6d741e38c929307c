"""Scores of continual learning: accuracies of tasks, and scores of a matrix of accuracies."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pml_supcon._arrays import Array, Floats, Labels, as_embeddings, as_labels, as_numpy, check_sequence
from pml_supcon._checks import check_int, shown


def class_il_accuracies(scores: Array, labels: Array, tasks: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
    """Return the accuracy on each task where the classes of all tasks compete (class-incremental accuracy).

    After training on task t, give the tasks up to t: their classes are then the ones that a model can predict.

    Args:
        scores: ``(N, C)`` floats, a column for each class: logits, probabilities or negative distances.
        labels: ``(N,)`` integers, columns of ``scores``. Rows whose class is in no task are left out.
        tasks: T disjoint sequences of classes (columns). Columns in no task do not compete.

    Returns:
        ``(T,)`` float64 in [0, 1]: the share of a task's rows whose own class has the highest score. Of equal scores,
        the class that ``tasks`` has first counts as predicted.

    Raises:
        TypeError: If scores are not floats, or labels or classes are not integers.
        ValueError: If shapes do not match, scores are not finite, a class is in two tasks or is no column, or a task
            has no class or no row.

    Source:
        van de Ven and Tolias, *Three scenarios for continual learning* (2019, arXiv 1904.07734).

    Examples:
        >>> scores = np.array([[3.0, 0, 0, 9], [0, 3, 0, 0], [0, 0, 3, 0], [0, 0, 0, 3]])
        >>> class_il_accuracies(scores, np.arange(4), [[0, 1], [2, 3]])
        array([0.5, 1. ])
    """
    values, wanted, groups = _checked(scores, labels, tasks)
    # The highest of the (N, C) scores, over the classes of all tasks.
    classes = np.concatenate(groups)
    right = classes[values[:, classes].argmax(axis=1)] == wanted
    return np.array([right[np.isin(wanted, group)].mean() for group in groups])


def task_il_accuracies(scores: Array, labels: Array, tasks: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
    """Return the accuracy on each task where only the task's own classes compete (task-incremental accuracy).

    It is never below ``class_il_accuracies`` of the same arguments.

    Args:
        scores: ``(N, C)`` floats, a column for each class: logits, probabilities or negative distances.
        labels: ``(N,)`` integers, columns of ``scores``. Rows whose class is in no task are left out.
        tasks: T disjoint sequences of classes (columns).

    Returns:
        ``(T,)`` float64 in [0, 1]: the share of a task's rows whose own class has the highest score of the task. Of
        equal scores, the class that ``tasks`` has first counts as predicted.

    Raises:
        TypeError: If scores are not floats, or labels or classes are not integers.
        ValueError: If shapes do not match, scores are not finite, a class is in two tasks or is no column, or a task
            has no class or no row.

    Source:
        van de Ven and Tolias, *Three scenarios for continual learning* (2019, arXiv 1904.07734).

    Examples:
        >>> scores = np.array([[3.0, 0, 0, 9], [0, 3, 0, 0], [0, 0, 3, 0], [0, 0, 0, 3]])
        >>> task_il_accuracies(scores, np.arange(4), [[0, 1], [2, 3]])
        array([1., 1.])
    """
    values, wanted, groups = _checked(scores, labels, tasks)
    accuracies = []
    for group in groups:
        # The task's rows (n,), and the highest of their scores over the task's classes, (n, c).
        own = np.isin(wanted, group)
        predicted = group[values[own][:, group].argmax(axis=1)]
        accuracies.append((predicted == wanted[own]).mean())
    return np.array(accuracies)


def average_accuracy(matrix: Array) -> float:
    r"""Return the mean accuracy over all tasks after the last one.

    .. math:: \frac{1}{T} \sum_{k=1}^{T} a_{T, k}

    Args:
        matrix: ``(T, T)`` floats, ``matrix[t, k]`` the accuracy on task k after training on task t. Only the last row
            is read.

    Returns:
        A number in [0, 1].

    Raises:
        TypeError: If the matrix is not floats.
        ValueError: If it is not square, or a value of the last row is not in [0, 1].

    Source:
        Lopez-Paz and Ranzato, *Gradient Episodic Memory for Continual Learning* (NeurIPS 2017), equation 2.

    Examples:
        >>> average_accuracy(np.array([[1.0, np.nan], [0.5, 0.75]]))
        0.625
    """
    values = _as_matrix(matrix)
    _check_accuracies(values, first=len(values) - 1)
    return float(values[-1].mean())


def forgetting(matrix: Array) -> float:
    r"""Return the mean fall of a task's accuracy from its best before the last task to its end.

    .. math:: \frac{1}{T - 1} \sum_{k=1}^{T-1} \left( \max_{k \le t < T} a_{t, k} - a_{T, k} \right)

    Args:
        matrix: ``(T, T)`` floats, ``matrix[t, k]`` the accuracy on task k after training on task t. Values above the
            diagonal (k > t) are not read.

    Returns:
        A number in [-1, 1]: below 0 if later tasks improve earlier ones; 0 for a single task, which nothing follows.

    Raises:
        TypeError: If the matrix is not floats.
        ValueError: If it is not square, or a value on or below the diagonal is not in [0, 1].

    Source:
        Chaudhry et al., *Riemannian Walk for Incremental Learning* (ECCV 2018), equation 3. Their maximum starts at the
        first task; ours at task k, before which the classes of task k are unknown.

    Examples:
        >>> round(forgetting(np.array([[0.9, np.nan, np.nan], [0.95, 0.8, np.nan], [0.6, 0.7, 0.9]])), 6)
        0.225
    """
    values = _as_matrix(matrix)
    _check_accuracies(values)
    if len(values) == 1:
        return 0.0
    # (T - 1,): the best accuracy on task k after the tasks k to T - 2.
    best = np.where(np.tri(len(values), dtype=bool), values, -np.inf)[:-1, :-1].max(axis=0)
    return float((best - values[-1, :-1]).mean())


def backward_transfer(matrix: Array) -> float:
    r"""Return the mean change of a task's accuracy from the end of its own training to the end of the last.

    .. math:: \frac{1}{T - 1} \sum_{k=1}^{T-1} \left( a_{T, k} - a_{k, k} \right)

    Args:
        matrix: ``(T, T)`` floats, ``matrix[t, k]`` the accuracy on task k after training on task t. Values above the
            diagonal (k > t) are not read.

    Returns:
        A number in [-1, 1]: below 0 if tasks are forgotten; 0 for a single task. Never below ``-forgetting(matrix)``.

    Raises:
        TypeError: If the matrix is not floats.
        ValueError: If it is not square, or a value on or below the diagonal is not in [0, 1].

    Source:
        Lopez-Paz and Ranzato, *Gradient Episodic Memory for Continual Learning* (NeurIPS 2017), equation 3.

    Examples:
        >>> round(backward_transfer(np.array([[0.9, np.nan, np.nan], [0.95, 0.8, np.nan], [0.6, 0.7, 0.9]])), 6)
        -0.2
    """
    values = _as_matrix(matrix)
    _check_accuracies(values)
    return float((values[-1] - np.diagonal(values))[:-1].mean()) if len(values) > 1 else 0.0


def average_incremental_accuracy(matrix: Array) -> float:
    r"""Return the mean, over the ends of all tasks, of the mean accuracy over the tasks so far.

    .. math:: \frac{1}{T} \sum_{t=1}^{T} \frac{1}{t} \sum_{k=1}^{t} a_{t, k}

    Args:
        matrix: ``(T, T)`` floats, ``matrix[t, k]`` the accuracy on task k after training on task t. Values above the
            diagonal (k > t) are not read.

    Returns:
        A number in [0, 1].

    Raises:
        TypeError: If the matrix is not floats.
        ValueError: If it is not square, or a value on or below the diagonal is not in [0, 1].

    Source:
        Rebuffi et al., *iCaRL: Incremental Classifier and Representation Learning* (CVPR 2017), section 4.1. They
        average over classes; with tasks of as many classes and test rows both are equal.

    Examples:
        >>> average_incremental_accuracy(np.array([[1.0, np.nan], [0.5, 0.75]]))
        0.8125
    """
    values = _as_matrix(matrix)
    _check_accuracies(values)
    return float(np.mean([values[t, : t + 1].mean() for t in range(len(values))]))


def _checked(scores: Array, labels: Array, tasks: Sequence[Sequence[int]]) -> tuple[Floats, Labels, list[Labels]]:
    """Return the scores, the labels and the classes of each task, checked."""
    values = as_embeddings(scores, "scores")
    wanted = as_labels(labels, "labels", len(values))
    columns = values.shape[1]
    if wanted.min() < 0 or wanted.max() >= columns:
        raise ValueError(
            f"Expected argument `labels` to be columns of `scores`, from 0 to {columns - 1}, but got {wanted.min()} to "
            f"{wanted.max()}"
        )
    check_sequence("tasks", tasks, "sequences of classes")
    if not tasks:
        raise ValueError("Expected argument `tasks` to have a task, but got none")
    owner: dict[int, int] = {}
    for place, task in enumerate(tasks):
        check_sequence(f"tasks[{place}]", task, "classes")
        for each in task:
            label = check_int(f"tasks[{place}]", each, 0, columns - 1)
            if label in owner:
                raise ValueError(
                    f"Expected argument `tasks` to have each class once, but class {label} is in tasks {owner[label]} "
                    f"and {place}"
                )
            owner[label] = place
        if not np.isin(wanted, list(task)).any():
            raise ValueError(
                f"Expected argument `labels` to have rows of each task, but got none of `tasks[{place}]`, "
                f"{shown(list(task))}"
            )
    return values, wanted, [np.array(task, dtype=np.int64) for task in tasks]


def _as_matrix(matrix: Array) -> npt.NDArray[np.float64]:
    values = as_numpy(matrix, "matrix")
    if not np.issubdtype(values.dtype, np.floating):
        raise TypeError(f"Expected argument `matrix` to be floating point, but got {matrix.dtype}")
    if values.ndim != 2 or values.shape[0] != values.shape[1] or not values.size:
        raise ValueError(f"Expected argument `matrix` to have the shape (T, T), T >= 1, but got {tuple(values.shape)}")
    return values.astype(np.float64)


def _check_accuracies(values: npt.NDArray[np.float64], first: int = 0) -> None:
    """Raise unless the values on and below the diagonal are accuracies, in the rows from ``first`` on."""
    bad = np.argwhere(np.tril(~((values >= 0) & (values <= 1)))[first:])  # NaN too
    if len(bad):
        t, k = bad[0] + [first, 0]
        raise ValueError(
            "Expected argument `matrix` to have accuracies in [0, 1] on and below the diagonal, but got "
            f"{values[t, k]:g} at [{t}, {k}]"
        )
