"""Accuracy by the number of training rows of a class, for long-tailed classes."""

import numpy as np

from pml_supcon._arrays import Array, Labels, as_labels, as_numpy
from pml_supcon.metrics.logistic import log_unseen_labels

#: Classes with more training rows are many-shot.
MANY = 100
#: Classes with fewer training rows are few-shot.
FEW = 20


def shot_accuracies(predictions: Array, labels: Array, train_labels: Array) -> dict[str, float]:
    """Average the accuracies of the classes with many, a medium number of, and few training rows.

    Args:
        predictions: ``(M,)`` integers, the predicted class of each test row.
        labels: ``(M,)`` integers, the classes of the test rows.
        train_labels: ``(N,)`` integers, the class of each training row. A class without training rows is few-shot; a
            warning is logged with the number of its test rows.

    Returns:
        Means over classes of the share of a class's test rows that are predicted right, in [0, 1]: ``many_shot`` over
        the classes with more than 100 training rows, ``medium_shot`` over those with 20 to 100, ``few_shot`` over those
        with fewer than 20, each only if there is such a class in the test rows; ``balanced`` over all classes of the
        test rows, which is scikit-learn's ``balanced_accuracy_score``.

    Raises:
        TypeError: If predictions or labels are not integers.
        ValueError: If they are not 1-D or are empty, or predictions and labels differ in their number.

    Source:
        Liu et al., *Large-Scale Long-Tailed Recognition in an Open World* (CVPR 2019).

    Examples:
        >>> train_labels = np.repeat([0, 1, 2], [500, 50, 5])
        >>> shot_accuracies(np.array([0, 0, 1, 0, 0, 2]), np.array([0, 0, 1, 1, 2, 2]), train_labels)
        {'many_shot': 1.0, 'medium_shot': 0.5, 'few_shot': 0.5, 'balanced': 0.6666666666666666}
    """
    wanted, learnt = _as_classes(labels, "labels"), _as_classes(train_labels, "train_labels")
    right = as_labels(predictions, "predictions", len(wanted)) == wanted
    log_unseen_labels(wanted, learnt, "their classes count as few-shot")
    # The accuracy of each class, (C,), and its number of training rows, (C,).
    classes, place, sizes = np.unique(wanted, return_inverse=True, return_counts=True)
    accuracies = np.bincount(place, weights=right) / sizes
    known, counts = np.unique(learnt, return_counts=True)
    nearest = np.searchsorted(known, classes).clip(max=len(known) - 1)
    shots = np.where(known[nearest] == classes, counts[nearest], 0)
    groups = {
        "many_shot": shots > MANY,
        "medium_shot": (shots >= FEW) & (shots <= MANY),
        "few_shot": shots < FEW,
        "balanced": shots >= 0,
    }
    return {name: float(accuracies[group].mean()) for name, group in groups.items() if group.any()}


def _as_classes(value: Array, name: str) -> Labels:
    array = as_numpy(value, name)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"Expected argument `{name}` to be 1-D and not empty, but got shape {array.shape}")
    return as_labels(array, name, len(array))
