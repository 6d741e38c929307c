"""The embedding map: against the definition of PCA, and by what t-SNE and UMAP are for."""

import sys

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness

from pml_supcon.metrics.embedding_map import embedding_map


def groups(rows=90, width=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    return (8 * np.eye(3, width)[labels] + rng.normal(size=(rows, width))).astype(np.float32), labels


def own_neighbour_share(flat, labels):
    flat = np.asarray(flat)
    distances = np.linalg.norm(flat[:, None] - flat, axis=-1)
    np.fill_diagonal(distances, np.inf)
    return (labels[distances.argmin(1)] == labels).mean()


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_pca_is_the_singular_value_decomposition(kind):
    rows, labels = groups()
    found = embedding_map(kind(rows), kind(labels), methods=["pca"], seed=0)
    centred = rows.astype(np.float64) - rows.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    flat = np.array(found["methods"]["pca"])
    np.testing.assert_allclose(abs(flat), abs(u[:, :2] * s[:2]), atol=2e-4)
    assert found["indices"] == list(range(90))
    assert found["labels"] == labels.tolist()


def test_tsne_keeps_neighbourhoods_and_repeats_itself():
    rows, labels = groups()
    found = embedding_map(rows, labels, seed=3)
    assert list(found["methods"]) == ["pca", "tsne"]
    flat = np.array(found["methods"]["tsne"])
    assert flat.shape == (90, 2)
    assert own_neighbour_share(flat, labels) == 1
    assert trustworthiness(rows, flat) > 0.8
    assert embedding_map(rows, labels, seed=3) == found


def test_umap_keeps_neighbourhoods():
    pytest.importorskip("umap")
    rows, labels = groups()
    flat = embedding_map(rows, labels, methods=["umap"], seed=3)["methods"]["umap"]
    assert own_neighbour_share(flat, labels) > 0.95
    few = embedding_map(rows[:5], labels[:5], methods=["umap"], seed=3)["methods"]["umap"]
    assert np.isfinite(few).all()


def test_without_umap_learn_it_is_said_before_anything_is_computed(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    monkeypatch.setattr("sklearn.manifold.TSNE.fit_transform", lambda *_: pytest.fail("t-SNE ran first"))
    with pytest.raises(ImportError, match="pip install umap-learn"):
        embedding_map(*groups(), methods=["tsne", "umap"], seed=0)


def test_of_many_rows_some_are_drawn():
    rows, labels = groups()
    found = embedding_map(rows, labels, methods=["pca"], most=20, seed=1)
    indices = found["indices"]
    assert len(set(indices)) == 20
    assert indices == sorted(indices)
    assert found["labels"] == labels[indices].tolist()
    assert found["methods"] == embedding_map(rows[indices], labels[indices], methods=["pca"], seed=9)["methods"]
    assert embedding_map(rows, labels, methods=["pca"], most=20, seed=2)["indices"] != indices


@pytest.mark.parametrize("rows", [np.ones((6, 3)), np.zeros((6, 1))])
def test_rows_that_are_all_the_same_lie_at_one_place(rows):
    found = embedding_map(rows, np.arange(6), seed=0)
    assert found["methods"] == {"pca": [[0.0, 0.0]] * 6, "tsne": [[0.0, 0.0]] * 6}


@pytest.mark.parametrize("shape", [(4, 3), (30, 1), (5, 2)])
def test_few_rows_and_columns(shape):
    rows = np.random.default_rng(0).normal(size=shape)
    found = embedding_map(rows, np.zeros(shape[0], dtype=int), seed=0)
    for flat in found["methods"].values():
        assert np.shape(flat) == (shape[0], 2)
        assert np.isfinite(flat).all()


@pytest.mark.parametrize(("change", "error", "match"), [
    ({"methods": ["pca", "isomap"]}, ValueError, "`methods` to be some of"),
    ({"methods": []}, ValueError, "`methods` to be some of"),
    ({"methods": "pca"}, ValueError, "`methods` to be some of"),
    ({"methods": ["pca", "pca"]}, ValueError, "each once"),
    ({"most": 0}, ValueError, "`most` to be at least 1"),
    ({"seed": None}, TypeError, "`seed` to be an integer"),
    ({"features": np.ones((3, 2))}, ValueError, "at least 4 rows for 'tsne', but got 3"),
    ({"features": np.full((4, 2), np.inf)}, ValueError, "`features` to be finite"),
    ({"labels": np.arange(3)}, ValueError, "`labels`"),
])  # fmt: skip
def test_bad_arguments(change, error, match):
    arguments = {"features": np.random.default_rng(0).normal(size=(4, 2)), "labels": np.arange(4), "seed": 0} | change
    arguments["labels"] = arguments["labels"] if "labels" in change else np.arange(len(arguments["features"]))
    with pytest.raises(error, match=match):
        embedding_map(**arguments)
