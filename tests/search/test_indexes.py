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
from pml_supcon.search.indexes import IndexSearcher, build_index, index_recall


@pytest.fixture(scope="module")
def gallery():
    """Return 2,000 points of 20 classes; the first 300 are the queries."""
    points, labels = clustered(2000, seed=1, width=16, spread=1.2, classes=20)
    return points[:300], labels[:300], points, labels


def neighbours_of(name, queries, references, k):
    """Search by FAISS alone, with a string of its factory, trained on the same rows."""
    index = require_faiss().index_factory(references.shape[1], name)
    index.train(references)
    index.add(references)
    return index.search(queries, k)


@pytest.mark.parametrize(
    ("index", "apart", "recall"),
    [("Flat", 1e-3, 1), ("ivf", 0.02, 0.85), ("hnsw", 0.02, 0.85), ("PCA12,IVF16,Flat", 0.06, 0.5)],
)
def test_a_good_index_is_near_the_exact_search(gallery, index, apart, recall):
    exact = retrieval_metrics(*gallery, ref_includes_query=True, at_r=False)
    found = retrieval_metrics(*gallery, ref_includes_query=True, at_r=False, index=index)
    assert found == pytest.approx(exact, abs=apart)
    assert 0.3 < exact["precision_at_1"] < 0.95
    assert index_recall(torch.from_numpy(gallery[0]), gallery[2], index=index, k=(1, 20))[20] >= recall


def with_one_list(faiss, references, name):
    index = build_index(faiss, references, name)
    if hasattr(index, "nprobe"):
        index.nprobe = 1
    return index


@pytest.mark.parametrize("name", ["PQ2x4", "IVF64,Flat"])
@pytest.mark.parametrize("knn_temperature", [0.07, math.inf])
def test_a_poor_index_is_scored_by_the_neighbours_that_it_returns(gallery, name, knn_temperature, monkeypatch):
    monkeypatch.setattr(indexes_module, "build_index", with_one_list)
    queries, wanted, references, labels = gallery
    options = {"ref_includes_query": True, "knn_temperature": knn_temperature}
    found = retrieval_scores(*gallery, index=name, **options)

    longest = int(np.unique(labels, return_counts=True)[1].max()) - 1
    distances, rows = neighbours_of(name, queries, references, longest + 1)
    kept = [np.flatnonzero(near != q) for q, near in enumerate(rows)]  # without the query, or without the last
    ranked = [
        (near[keep][:longest], np.where(near[keep] < 0, math.inf, far[keep])[:longest])
        for near, far, keep in zip(rows, distances, kept, strict=True)
    ]
    expected = scores_by_loops(ranked, wanted, labels, **options)
    for metric, values in found.items():
        if metric == "knn_accuracy" and name == "PQ2x4":
            continue  # many distances of codes tie, and rounding of the sums of weights decides
        assert values == pytest.approx(expected[metric], abs=1e-6), metric
    exact = retrieval_metrics(*gallery, **options)
    assert abs(np.mean(found["mean_average_precision_at_r"]) - exact["mean_average_precision_at_r"]) > 0.03
    if name == "IVF64,Flat":  # places that the index left empty are misses
        assert (rows < 0).any()
        assert (found["mean_reciprocal_rank"] == 0).any()


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


def test_an_hnsw_index_searches_at_least_k_candidates(gallery):
    queries, _, references, _ = gallery
    searcher = IndexSearcher(require_faiss(), queries, references, name="hnsw", own=True)
    for k in (1, 500):
        assert (searcher.find(np.arange(20), k)[1] >= 0).all()
        assert searcher.index.hnsw.efSearch >= max(k + 1, 64)


def test_many_neighbours_of_an_approximate_index_are_a_warning(caplog):
    points = clustered(1500, seed=1)[0]
    labels = np.zeros(1500, int)
    retrieval_metrics(points, labels, points, labels, ref_includes_query=True, index="Flat")
    assert [record.getMessage() for record in caplog.records] == [
        "index='Flat' searches 1499 neighbours of each query, which is slow: `at_r=False` leaves out the metrics that "
        "rank all references of a class."
    ]
    caplog.clear()
    retrieval_metrics(points, labels, points, labels, ref_includes_query=True)
    retrieval_metrics(points, labels, points, labels, ref_includes_query=True, index="Flat", at_r=False)
    assert not caplog.records


@pytest.mark.parametrize("name", ["PCA8,IVF200,Flat", "PQ4x6", "IVF200,PQ4x6"])
def test_faiss_does_not_warn_of_few_points(gallery, name, capfd):
    index_recall(gallery[0], gallery[2], index=name, k=(1,))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"index": 3}, TypeError, "`index` to be a string, but got 3"),
        ({"k": (1, 2000), "ref_includes_query": True}, ValueError, "at most the 1999 other references, but got 2000"),
        ({"reference": np.eye(16), "ref_includes_query": True}, ValueError, r"others \(300 queries, 16 references\)"),
        ({"index": "ivff"}, ValueError, r"got 'ivff'; did you mean 'ivf'"),
        ({"index": "PQ7"}, ValueError, "index_factory that fits a width of 16, but got 'PQ7'"),
        ({"index": "IVF4096,Flat"}, ValueError, r"'IVF4096,Flat' can hold, but got 2000: .*2000.*4096"),
        ({"index": "IDMap,Flat"}, ValueError, "'IDMap,Flat' can hold, but got 2000: .*add_with_ids"),
        ({"k": ()}, TypeError, r"`k` to be a sequence of integers, but got \(\)"),
        ({"queries": 0}, ValueError, "`queries` to be at least 1, but got 0"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(gallery, change, error, message):
    arguments = {"query": gallery[0], "reference": gallery[2], "index": "Flat", "k": (1,)} | change
    with pytest.raises(error, match=f"(?s){message}"):
        index_recall(**arguments)


def test_an_index_on_gpus_is_an_error_without_one(gallery):
    with pytest.raises(ValueError, match=r"Expected a GPU, .*index='gpu_flat', but there is none"):
        index_recall(gallery[0], gallery[2], index="gpu_flat")


@pytest.mark.parametrize(("name", "kind", "shard"), [("gpu_sharded", "Flat", True), ("gpu_ivf", "IVF2,Flat", False)])
def test_an_index_goes_to_all_gpus(name, kind, shard):
    """Call a stand-in for the functions that only FAISS's build for GPUs has."""
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


@pytest.mark.parametrize("step", ["clone", "add", "search"])
def test_references_that_a_gpu_cannot_hold(step):
    """FAISS's message for a GPU without the memory, from a stand-in."""
    faiss = require_faiss()

    def fail(*_, **__):
        raise RuntimeError("Error in StandardGpuResourcesImpl::allocMemory\nFailed: cudaMalloc error out of memory")

    class Index:
        ntotal = 80
        train = staticmethod(lambda rows: None)
        add = staticmethod(fail if step == "add" else lambda rows: None)
        search = staticmethod(fail)

    fake = SimpleNamespace(
        index_factory=faiss.index_factory,
        try_extract_index_ivf=faiss.try_extract_index_ivf,
        get_num_gpus=lambda: 1,
        GpuMultipleClonerOptions=SimpleNamespace,
        index_cpu_to_all_gpus=fail if step == "clone" else lambda index, co: Index(),
    )
    points = clustered(80, seed=0)[0]
    message = "index='gpu_flat' can hold, but got 80: Failed: cudaMalloc error out of memory; 'gpu_sharded' divides"
    with pytest.raises(ValueError, match=message):
        IndexSearcher(fake, points, points, name="gpu_flat", own=True).find(np.arange(3), 5)
