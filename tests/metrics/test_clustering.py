import numpy as np
import pytest
import torch
from helpers.labelled_points import clustered, on_a_grid, with_lone_labels
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from pml_supcon.metrics.clustering import clustering_metrics


@pytest.mark.parametrize(("make", "rows", "classes"), [(clustered, 5000, 60), (on_a_grid, 2000, 10)])
def test_agrees_with_pml(make, rows, classes):
    points, labels = make(rows, seed=1, classes=classes)
    labels = with_lone_labels(labels, np.arange(0, rows, 500))
    calculator = AccuracyCalculator(include=("NMI", "AMI"), device=torch.device("cpu"))
    expected = calculator.get_accuracy(points, labels, points, labels, ref_includes_query=True)
    found = clustering_metrics(torch.from_numpy(points), torch.from_numpy(labels))
    assert found == pytest.approx({"nmi": expected["NMI"], "ami": expected["AMI"]}, abs=1e-6)
    assert 0.1 < found["ami"] < found["nmi"] < 0.95


def test_one_class_and_few_rows_in_a_cluster_without_a_warning_of_faiss(capfd):
    points = np.random.default_rng(0).normal(size=(50, 3))
    assert clustering_metrics(points, np.full(50, 2**60)) == {"nmi": 1.0, "ami": 1.0}
    clustering_metrics(*clustered(40, seed=1, classes=4))
    assert capfd.readouterr().err == ""
    with pytest.raises(ValueError, match=r"`labels` .* shape \(50,\), but got shape \(2,\)"):
        clustering_metrics(points, np.arange(2))


def test_rows_of_very_different_lengths_are_an_error():
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    rows[7] = 1e38
    with pytest.raises(ValueError, match="`embeddings` to have squared distances that fit into float32"):
        clustering_metrics(rows, np.arange(50) % 2)
