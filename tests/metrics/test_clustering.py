import math

import numpy as np
import pytest
import torch
from helpers.labelled_points import clustered, on_a_grid, with_lone_labels
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.cluster import KMeans

from pml_supcon.metrics.clustering import clustering_metrics


@pytest.mark.parametrize("make", [clustered, on_a_grid])
@pytest.mark.parametrize(("rows", "classes"), [(2000, 10), (5000, 60)])
def test_agrees_with_pml(make, rows, classes):
    points, labels = make(rows, seed=1, classes=classes)
    labels = with_lone_labels(labels, np.arange(0, rows, 500))
    calculator = AccuracyCalculator(include=("NMI", "AMI"), device=torch.device("cpu"))
    expected = calculator.get_accuracy(points, labels, points, labels, ref_includes_query=True)
    found = clustering_metrics(torch.from_numpy(points), torch.from_numpy(labels))
    assert found == pytest.approx({"nmi": expected["NMI"], "ami": expected["AMI"]}, abs=1e-6)
    assert 0.1 < found["ami"] < found["nmi"] < 0.95


def by_counts(classes, clusters):
    """NMI of two partitions, from the definition."""
    total, rows = 0.0, len(classes)
    for a in set(classes):
        for b in set(clusters):
            both = sum(x == a and y == b for x, y in zip(classes, clusters, strict=True)) / rows
            if both:
                total += both * math.log(both / ((classes == a).mean() * (clusters == b).mean()))

    def entropy(values):
        return -sum(p * math.log(p) for p in np.unique(values, return_counts=True)[1] / rows)

    return 2 * total / (entropy(classes) + entropy(clusters))


def test_agrees_with_another_k_means_where_clusters_are_plain():
    """Blobs far apart, and labels that halve one and join two others."""
    rng = np.random.default_rng(0)
    blobs = np.repeat(np.arange(4), 60)
    points = 20 * np.eye(4)[blobs] + rng.normal(size=(240, 4))
    labels = np.where(blobs == 3, 2, blobs)
    labels[:30] = 3
    clusters = KMeans(4, n_init=10, random_state=0).fit_predict(points)
    found = clustering_metrics(points, labels)
    assert found["nmi"] == pytest.approx(by_counts(labels, clusters), abs=1e-6)
    assert found["nmi"] < 0.9


def test_chance_gives_no_ami():
    points = np.random.default_rng(0).normal(size=(500, 4))
    found = clustering_metrics(points, np.random.default_rng(1).integers(0, 20, size=500))
    assert abs(found["ami"]) < 0.03
    assert found["nmi"] > 0.1  # which is why AMI is there


def test_one_class_and_few_rows_in_a_cluster_without_a_warning_of_faiss(capfd):
    points = np.random.default_rng(0).normal(size=(50, 3))
    assert clustering_metrics(points, np.full(50, 2**60)) == {"nmi": 1.0, "ami": 1.0}
    clustering_metrics(*clustered(40, seed=1, classes=4))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("points", "labels", "error", "message"),
    [
        (np.eye(3, dtype=int), np.arange(3), TypeError, "`embeddings` to be floating point, but got int64"),
        (np.eye(3), np.arange(2), ValueError, r"`labels` .* shape \(3,\), but got shape \(2,\)"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(points, labels, error, message):
    with pytest.raises(error, match=message):
        clustering_metrics(points, labels)
