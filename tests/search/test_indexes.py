import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.labelled_points import clustered, rankings, scores_by_loops

from pml_supcon._extras import require_faiss
from pml_supcon.metrics import retrieval_metrics
from pml_supcon.metrics.retrieval import retrieval_scores
from pml_supcon.search import indexes as indexes_module
from pml_supcon.search.indexes import INDEXES, IndexSearcher, build_index, index_recall


@pytest.fixture(scope="module")
def gallery():
    """2,000 points of 20 classes, the first 300 of them the queries."""
    points, labels = clustered(2000, seed=1, width=16, spread=1.2, classes=20)
    return points[:300], labels[:300], points, labels


def neighbours_of(name, queries, references, k):
    """What FAISS itself gives for a string of its factory, trained on the same rows."""
    index = require_faiss().index_factory(references.shape[1], name)
    index.train(references)
    index.add(references)
    return index.search(queries, k)


@pytest.mark.parametrize("index", ["ivf", "hnsw", "IVF32,Flat", "HNSW16,Flat", "PCA12,IVF16,Flat"])
def test_a_good_index_is_near_the_exact_search(gallery, index):
    exact = retrieval_metrics(*gallery, ref_includes_query=True, at_r=False)
    found = retrieval_metrics(*gallery, ref_includes_query=True, at_r=False, index=index)
    assert found == pytest.approx(exact, abs=0.06 if "PCA" in index else 0.02)
    assert 0.3 < exact["precision_at_1"] < 0.95
    assert index_recall(gallery[0], gallery[2], index=index, k=(1, 20))[20] > (0.5 if "PCA" in index else 0.85)


def test_an_index_of_all_references_is_exact(gallery):
    assert index_recall(gallery[0], gallery[2], index="Flat") == {1: 1.0, 10: 1.0, 100: 1.0}
    options = {"ref_includes_query": True, "recall_at": (1, 5)}
    exact = retrieval_metrics(*gallery, **options)
    assert retrieval_metrics(*gallery, index="Flat", **options) == pytest.approx(exact, abs=1e-4)


def with_one_list(faiss, references, name):
    index = build_index(faiss, references, name)
    if hasattr(index, "nprobe"):
        index.nprobe = 1
    return index


@pytest.mark.parametrize("name", ["PQ2x4", "IVF64,Flat"])
@pytest.mark.parametrize("knn_temperature", [0.07, math.inf])
def test_metrics_of_a_poor_index_are_those_of_the_neighbours_that_it_gives(gallery, name, knn_temperature, monkeypatch):
    monkeypatch.setattr(indexes_module, "build_index", with_one_list)
    queries, wanted, references, labels = gallery
    options = {"ref_includes_query": True, "knn_temperature": knn_temperature}
    found = retrieval_scores(*gallery, index=name, **options)

    longest = int(np.unique(labels, return_counts=True)[1].max()) - 1
    distances, rows = neighbours_of(name, queries, references, longest + 1)
    kept = [np.flatnonzero(near != q) for q, near in enumerate(rows)]  # without the query, or the last where it is not
    ranked = [
        (near[keep][:longest], np.where(near[keep] < 0, math.inf, far[keep])[:longest])
        for near, far, keep in zip(rows, distances, kept, strict=True)
    ]
    expected = scores_by_loops(ranked, wanted, labels, **options)
    for metric, values in found.items():
        if metric == "knn_accuracy" and name == "PQ2x4":
            continue  # distances of codes tie by the hundred, and the last digits of sums of weights decide
        assert values == pytest.approx(expected[metric], abs=1e-6), metric
    exact = retrieval_metrics(*gallery, **options)
    assert abs(np.mean(found["mean_average_precision_at_r"]) - exact["mean_average_precision_at_r"]) > 0.03
    if name == "IVF64,Flat":
        assert (rows < 0).any()


def test_places_left_empty_are_misses(monkeypatch):
    """Two lists far apart, of which one is searched: what lies in the other is not found, at any rank."""
    monkeypatch.setattr(indexes_module, "build_index", with_one_list)
    points = np.repeat([[-9.0, -9.0], [9.0, 9.0]], 40, axis=0) + np.random.default_rng(0).normal(size=(80, 2))
    labels = np.concatenate([np.zeros(40, int), np.ones(39, int), [0]])  # the last is of the others' class
    options = {"ref_includes_query": True, "recall_at": (1, 50), "index": "IVF2,Flat"}
    options |= {"knn_k": 79, "knn_temperature": math.inf}  # 39 found and 40 empty places, which have no vote
    scores = retrieval_scores(points, labels, points, labels, **options)
    assert {name: values[-1] for name, values in scores.items()} == dict.fromkeys(scores, 0.0)
    assert scores["recall_at_50"][:-1].tolist() == scores["knn_accuracy"][:-1].tolist() == [1.0] * 79
    assert scores["r_precision"][0] == pytest.approx(39 / 40)


def test_index_recall_draws_its_queries(gallery):
    queries, _, references, _ = gallery
    some = index_recall(queries, references, index="PQ2x4", k=(10,), queries=50, seed=3)
    assert some == index_recall(queries, references, index="PQ2x4", k=(10,), queries=50, seed=3)
    assert some != index_recall(queries, references, index="PQ2x4", k=(10,), queries=50, seed=4)
    drawn = np.sort(np.random.default_rng(3).permutation(300)[:50])
    assert some == index_recall(torch.from_numpy(queries[drawn]), references, index="PQ2x4", k=(10,))


@pytest.mark.parametrize("name", ["PQ2x4", "IVF64,Flat", "Flat"])
@pytest.mark.parametrize("own", [True, False])
def test_index_recall_is_the_share_of_the_true_neighbours_found(gallery, name, own, monkeypatch):
    queries, _, references, _ = gallery
    monkeypatch.setattr(indexes_module, "build_index", with_one_list)
    found = index_recall(queries, references, index=name, k=(1, 7, 30), queries=200, seed=5, ref_includes_query=own)
    given = neighbours_of(name, queries, references, 30 + own)[1]
    true = [order[:30].tolist() for order, _ in rankings(queries, references, ref_includes_query=own)]
    drawn = np.random.default_rng(5).permutation(300)[:200]
    for k, recall in found.items():
        others = [[row for row in given[query].tolist() if not own or row != query][:k] for query in drawn]
        shares = [len(set(near) & set(true[query][:k])) / k for near, query in zip(others, drawn, strict=True)]
        assert recall == pytest.approx(np.mean(shares), abs=1e-9)
    assert found[30] == 1 if name == "Flat" else 0.02 < found[30] < 0.9


def test_index_recall_far_from_the_origin(gallery):
    far = gallery[2] + 1e4
    recall = index_recall(far[:300], far, index="Flat", k=(10,), ref_includes_query=True)
    assert recall[10] == 1
    near = index_recall(gallery[0], gallery[2], index="PQ2x4", k=(10,))
    assert index_recall(far[:300], far, index="PQ2x4", k=(10,)) == pytest.approx(near, abs=0.1)


def test_an_hnsw_index_searches_at_least_k_candidates(gallery):
    queries, _, references, _ = gallery
    searcher = IndexSearcher(require_faiss(), queries, references, name="hnsw", own=True)
    for k in (1, 500):
        assert (searcher.find(np.arange(20), k)[1] >= 0).all()
        assert searcher.index.hnsw.efSearch >= max(k + 1, 64)


def test_many_neighbours_of_an_approximate_index_are_a_warning(caplog):
    points = clustered(1500, seed=1)[0]
    labels = np.zeros(1500, int)
    with caplog.at_level(logging.WARNING):
        retrieval_metrics(points, labels, points, labels, ref_includes_query=True, index="Flat")
    assert [record.getMessage() for record in caplog.records] == [
        "index='Flat' searches 1499 neighbours of each query, which is slow: `at_r=False` leaves out the metrics that "
        "rank all references of a class."
    ]
    caplog.clear()
    retrieval_metrics(points, labels, points, labels, ref_includes_query=True)
    retrieval_metrics(points, labels, points, labels, ref_includes_query=True, index="Flat", at_r=False)
    assert not caplog.records


@pytest.mark.parametrize(
    "name", ["PCA8,IVF200,Flat", *(pytest.param(name, marks=pytest.mark.slow) for name in ("PQ4", "IVF200,PQ4"))]
)
def test_faiss_does_not_warn_of_few_points(gallery, name, capfd):
    index_recall(gallery[0], gallery[2], index=name, k=(1,))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"index": 3}, TypeError, "`index` to be a string, but got 3"),
        ({"seed": -1}, ValueError, "`seed` to be at least 0, but got -1"),
        ({"k": (1, 2000), "ref_includes_query": True}, ValueError, "at most the 1999 other references, but got 2000"),
        ({"reference": np.eye(16), "ref_includes_query": True}, ValueError, r"others \(300 queries, 16 references\)"),
        ({"index": "ivff"}, ValueError, r"got 'ivff'; did you mean 'ivf'"),
        ({"index": "PQ7"}, ValueError, "index_factory that fits a width of 16, but got 'PQ7'"),
        ({"index": "IVF4096,Flat"}, ValueError, r"'IVF4096,Flat' can hold, but got 2000: .*2000.*4096"),
        ({"index": "IDMap,Flat"}, ValueError, "'IDMap,Flat' can hold, but got 2000: .*add_with_ids"),
        ({"k": (1, 2001)}, ValueError, "`k` to be at most the 2000 references, but got 2001"),
        ({"k": (0,)}, ValueError, "`k` to be at least 1, but got 0"),
        ({"k": 10}, TypeError, "`k` to be a sequence of integers, but got 10"),
        ({"k": ()}, TypeError, r"`k` to be a sequence of integers, but got \(\)"),
        ({"queries": 0}, ValueError, "`queries` to be at least 1, but got 0"),
        ({"query": np.full((1, 16), math.nan)}, ValueError, "`query` to be finite"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(gallery, change, error, message):
    arguments = {"query": gallery[0], "reference": gallery[2], "index": "Flat", "k": (1,)} | change
    with pytest.raises(error, match=f"(?s){message}"):
        index_recall(**arguments)


@pytest.mark.parametrize("name", [name for name in INDEXES if name.startswith("gpu")])
def test_an_index_on_gpus_is_an_error_without_one(gallery, name):
    with pytest.raises(ValueError, match=f"Expected a GPU, .*index='{name}', but there is none"):
        retrieval_metrics(*gallery, ref_includes_query=True, index=name)


@pytest.mark.parametrize(("name", "kind", "shard"), [("gpu_sharded", "Flat", True), ("gpu_ivf", "IVF2,Flat", False)])
def test_an_index_goes_to_all_gpus(name, kind, shard):
    """With a stand-in for the part of FAISS that only its build for GPUs has."""
    faiss, moved = require_faiss(), []

    def move(index, co):
        moved.append((type(index), index.ntotal, co.shard))
        return index

    fake = SimpleNamespace(
        index_factory=faiss.index_factory,
        try_extract_index_ivf=faiss.try_extract_index_ivf,
        get_num_gpus=lambda: 1,
        GpuMultipleClonerOptions=SimpleNamespace,
        index_cpu_to_all_gpus=move,
    )
    points = clustered(80, seed=0)[0]
    searcher = IndexSearcher(fake, points, points, name=name, own=True)
    assert moved == [(type(faiss.index_factory(8, kind)), 0, shard)]
    assert searcher.index.ntotal == 80
    with pytest.raises(ValueError, match="at most 2048 neighbours of an index on a GPU, but got 2049"):
        searcher.find(np.arange(3), 2048)
