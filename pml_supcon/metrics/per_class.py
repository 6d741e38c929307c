"""Mean scores of the queries of each class."""

from collections.abc import Mapping

import numpy as np

from pml_supcon._arrays import Array, Floats, as_labels, as_numpy
from pml_supcon._checks import check_type


def per_class_means(scores: Mapping[str, Array], labels: Array) -> dict[int, dict[str, float]]:
    """Average the scores of the queries of each class.

    Args:
        scores: The scores of `retrieval_scores`: ``(N,)`` arrays or tensors, NaN for a query without a score.
        labels: ``(N,)`` integers.

    Returns:
        For each label, in ascending order: the mean of each metric over the queries with a score (NaN if there are
        none), and ``queries``, the number of queries with a score in any metric.

    Raises:
        TypeError: If labels are not integers, or scores are neither arrays nor tensors.
        ValueError: If there is no metric, the metrics have different numbers of scores, or there is not one label per
            query.

    Examples:
        >>> scores = {"precision_at_1": np.array([1.0, 0.0, 1.0, np.nan])}
        >>> per_class_means(scores, np.array([7, 7, 3, 9]))[7]
        {'precision_at_1': 0.5, 'queries': 2.0}
    """
    check_type("scores", scores, Mapping, "a mapping")
    if not scores:
        raise ValueError("Expected argument `scores` to have a metric, but got none")
    columns = {name: _as_scores(values, name) for name, values in scores.items()}
    shapes = {name: values.shape for name, values in columns.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"Expected argument `scores` to have metrics of one shape (N,), but got {shapes}")
    rows = len(next(iter(columns.values())))
    classes, place = np.unique(as_labels(labels, "labels", rows), return_inverse=True)
    means: dict[str, Floats] = {}  # (C,) values of each metric
    for name, values in columns.items():
        counted = ~np.isnan(values)
        counts = np.bincount(place[counted], minlength=len(classes))
        sums = np.bincount(place[counted], weights=values[counted], minlength=len(classes))
        means[name] = np.divide(sums, counts, out=np.full(len(classes), np.nan), where=counts > 0)
    scored = ~np.all([np.isnan(values) for values in columns.values()], axis=0)
    means["queries"] = np.bincount(place[scored], minlength=len(classes)).astype(np.float64)
    return {int(label): {name: float(means[name][row]) for name in means} for row, label in enumerate(classes)}


def _as_scores(values: Array, name: str) -> Floats:
    array = as_numpy(values, f"scores[{name!r}]")
    if array.dtype.kind not in "fiub":
        raise TypeError(f"Expected argument `scores[{name!r}]` to be numbers, but got {array.dtype}")
    return array.astype(np.float64)
