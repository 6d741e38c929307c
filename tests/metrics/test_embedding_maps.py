import sys

import numpy as np
import pytest
import torch

from pml_supcon.metrics.embedding_maps import embedding_map


def groups():
    labels = np.arange(90) % 3
    return (8 * np.eye(3, 6)[labels] + np.random.default_rng(0).normal(size=(90, 6))).astype(np.float32), labels


def own_neighbour_share(flat, labels):
    distances = np.linalg.norm(flat[:, None] - flat, axis=-1)
    np.fill_diagonal(distances, np.inf)
    return (labels[distances.argmin(1)] == labels).mean()


def test_pca_is_the_singular_value_decomposition():
    rows, _ = groups()
    found = embedding_map(torch.from_numpy(rows), methods=["pca"], seed=0)
    u, s, _ = np.linalg.svd(rows.astype(np.float64) - rows.mean(0), full_matrices=False)
    np.testing.assert_allclose(abs(found.coordinates["pca"]), abs(u[:, :2] * s[:2]), atol=2e-4)
    assert found.rows.tolist() == list(range(90))


def test_tsne_keeps_neighbourhoods_and_repeats_itself():
    rows, labels = groups()
    found = embedding_map(rows, seed=3).coordinates
    assert list(found) == ["pca", "tsne"]
    assert own_neighbour_share(found["tsne"], labels) == 1
    np.testing.assert_array_equal(embedding_map(rows, seed=3).coordinates["tsne"], found["tsne"])


def test_umap_keeps_neighbourhoods():
    pytest.importorskip("umap")
    rows, labels = groups()
    assert own_neighbour_share(embedding_map(rows, methods=["umap"], seed=3).coordinates["umap"], labels) > 0.95
    assert np.isfinite(embedding_map(rows[:5], methods=["umap"], seed=3).coordinates["umap"]).all()


def test_without_umap_learn_nothing_is_computed(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    monkeypatch.setattr("sklearn.manifold.TSNE.fit_transform", lambda *_: pytest.fail("t-SNE ran first"))
    with pytest.raises(ImportError, match=r"pml-supcon\[umap\]"):
        embedding_map(groups()[0], methods=["tsne", "umap"], seed=0)


def test_of_many_rows_some_are_drawn():
    rows, _ = groups()
    found = embedding_map(rows, methods=["pca"], max_rows=20, seed=1)
    assert len(found.rows) == 20
    assert (np.diff(found.rows) > 0).all()
    alone = embedding_map(rows[found.rows], methods=["pca"], seed=9)
    np.testing.assert_allclose(found.coordinates["pca"], alone.coordinates["pca"], atol=1e-4)
    assert embedding_map(rows, methods=["pca"], max_rows=20, seed=2).rows.tolist() != found.rows.tolist()


@pytest.mark.parametrize("rows", [np.ones((6, 3)), np.zeros((6, 1))])
def test_identical_rows_are_at_the_origin(rows):
    found = embedding_map(rows, seed=0).coordinates
    assert {name: (flat.shape, flat.any()) for name, flat in found.items()} == dict.fromkeys(
        ("pca", "tsne"), ((6, 2), False)
    )


@pytest.mark.parametrize("shape", [(4, 3), (30, 1)])
def test_few_rows_and_columns(shape):
    for flat in embedding_map(np.random.default_rng(0).normal(size=shape), seed=0).coordinates.values():
        assert flat.shape == (shape[0], 2)
        assert np.isfinite(flat).all()


@pytest.mark.parametrize(("change", "error", "match"), [
    ({"methods": ["pca", "isomap"]}, ValueError, "`methods` to be some of"),
    ({"methods": []}, ValueError, "`methods` to be some of"),
    ({"methods": "pca"}, ValueError, "`methods` to be some of"),
    ({"methods": ["pca", "pca"]}, ValueError, "each once"),
    ({"seed": None}, TypeError, "`seed` to be an integer"),
    ({"features": np.diag([1.0, 1.0, 1.0, 1e16])}, ValueError, "have values of at most 1e.15, but got 1e.16"),
    ({"features": np.full((4, 2), -3e38, np.float32)}, ValueError, "at most 1e.15, but got 3e.38"),
    ({"methods": [10**5000]}, ValueError, "`methods` to be some of"),
    ({"features": np.ones((3, 2))}, ValueError, "at least 4 rows for 'tsne', but got 3"),
])  # fmt: skip
def test_bad_arguments(change, error, match):
    with pytest.raises(error, match=match):
        embedding_map(**{"features": np.random.default_rng(0).normal(size=(4, 2)), "seed": 0} | change)
