"""Points with labels for the tests of metrics, search and testers, and loops that compute every ranking metric."""

import math
from collections import defaultdict

import numpy as np
import torch
from torch.utils.data import TensorDataset


def clustered(rows, *, seed, width=8, spread=1.0, classes=30):
    """Return normalised points of uneven classes: class c is about twice as likely as class c + classes / 6."""
    rng = np.random.default_rng(seed)
    share = 0.5 ** (np.arange(classes) * 6 / classes)
    labels = rng.choice(classes, size=rows, p=share / share.sum())
    centres = np.random.default_rng(99).normal(size=(classes, width))
    points = centres[labels] + spread * rng.normal(size=(rows, width))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points.astype(np.float32), labels


def on_a_grid(rows, *, seed, classes, side=3, width=4):
    """Return points with small integer coordinates: exact in float32, with many ties and duplicates."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size=rows)
    centres = np.random.default_rng(98).integers(-side, side, size=(classes, width))
    return (centres[labels] + rng.integers(-2, 3, size=(rows, width))).astype(np.float32), labels


def with_lone_labels(labels, rows, *, start=1000):
    """Return the labels, with a class of its own for each of the given rows."""
    labels = labels.copy()
    labels[rows] = start + np.arange(len(rows))
    return labels


def rankings(query, reference, *, ref_includes_query):
    """Yield for each query the rows of its references, nearest first, ties by row, and squared float64 distances."""
    for q, point in enumerate(query.astype(np.float64)):
        distances = np.square(reference.astype(np.float64) - point).sum(axis=1)
        order = np.argsort(distances, kind="stable")
        order = order[order != q] if ref_includes_query else order
        yield order, distances[order]


def scores_by_loops(
    ranked, wanted, labels, *, ref_includes_query=False, recall_at=(1, 2, 4, 8), knn_k=20, knn_temperature=0.07
):
    """Compute every metric query by query, from `(rows, squared distances)` in order; a row below 0 is no neighbour."""
    names = ["precision_at_1", *(f"recall_at_{k}" for k in recall_at), "mean_reciprocal_rank"]
    names += ["r_precision", "mean_average_precision_at_r", "knn_accuracy"]
    scores = {name: [] for name in names}
    for (order, distances), label in zip(ranked, wanted, strict=True):
        total = int((labels == label).sum()) - int(ref_includes_query)
        if total == 0:
            for values in scores.values():
                values.append(math.nan)
            continue
        hits = [int(row >= 0 and labels[row] == label) for row in order]
        found = {"precision_at_1": hits[0]}
        for k in recall_at:
            found[f"recall_at_{k}"] = int(1 in hits[:k])
        found["mean_reciprocal_rank"] = 1 / (1 + hits.index(1)) if 1 in hits else 0
        found["r_precision"] = sum(hits[:total]) / total
        found["mean_average_precision_at_r"] = (
            sum(sum(hits[: i + 1]) / (i + 1) for i in range(min(total, len(hits))) if hits[i]) / total
        )
        votes = defaultdict(float)
        for row, distance in zip(order[:knn_k], distances[:knn_k], strict=True):
            if row >= 0:
                nearer = distances[0] - distance  # the factor cancels
                votes[labels[row]] += 1 if math.isinf(knn_temperature) else math.exp(nearer / (2 * knn_temperature))
        best = [labels[row] for row in order if row >= 0 and votes[labels[row]] == max(votes.values())]
        found["knn_accuracy"] = int(bool(best) and best[0] == label)
        for name, value in found.items():
            scores[name].append(float(value))
    return {name: np.array(values) for name, values in scores.items()}


def overlapping(rows, *, seed, classes, width, apart=1.0, spread=1.0, first_label=0):
    """Return features and labels of overlapping classes: centres of scale `apart`, noise of scale `spread`."""
    labels = np.random.default_rng(seed).integers(0, classes, rows)
    centres = np.random.default_rng(99).normal(size=(classes, width)) * apart
    points = centres[labels] + spread * np.random.default_rng(seed + 1).normal(size=(rows, width))
    return points, labels + first_label


def of_any_length(rows, *, seed, classes=4, width=5):
    """Return overlapping classes of `rows` rows each, in features of very different lengths."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), rows))
    points = np.random.default_rng(99).normal(size=(classes, width))[labels] + rng.normal(size=(len(labels), width))
    return points * rng.uniform(0.1, 10, size=(len(labels), 1)), labels * 7 + 3


def of_any_scale(rows, *, seed, classes=8, width=6, spread=1.5):
    """Return overlapping classes in columns of different scales and means."""
    points, labels = overlapping(rows, seed=seed, classes=classes, width=width, spread=spread)
    return points * 10.0 ** np.linspace(-2, 2, width) + np.arange(width) * 50, labels


def data_sets(**splits):
    """Return a data set of float32 features and labels for each split, as PML's testers take them."""
    return {
        name: TensorDataset(torch.from_numpy(points).float(), torch.from_numpy(labels))
        for name, (points, labels) in splits.items()
    }


class Untouchable(torch.nn.Module):
    """A model for tests of errors that are raised before embeddings are computed: a call fails the test."""

    def forward(self, rows):
        raise AssertionError("embeddings were computed")
