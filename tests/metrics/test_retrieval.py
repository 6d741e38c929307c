import math
import time

import numpy as np
import pytest
import torch
from helpers.labelled_points import clustered, on_a_grid, rankings, scores_by_loops, with_lone_labels
from helpers.peak_memory import measured
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from pml_supcon.metrics import retrieval_metrics
from pml_supcon.metrics._ranking import knn_vote
from pml_supcon.metrics.retrieval import retrieval_scores
from pml_supcon.search import indexes as indexes_module
from pml_supcon.search.exact import FaissSearcher, StreamedSearcher

PML_METRICS = ("precision_at_1", "mean_reciprocal_rank", "r_precision", "mean_average_precision_at_r")


def case(own, queries, references, *, make=clustered, **options):
    """Return the arguments and options of `retrieval_metrics`; some queries are lone."""
    query, wanted = make(queries, seed=1, **options)
    reference, labels = make(references, seed=2, **options)
    wanted = with_lone_labels(wanted, np.arange(0, queries, 17))
    labels = with_lone_labels(labels, np.arange(3, references, 23), start=5000)
    if own:
        reference, labels = np.concatenate([query, reference]), np.concatenate([wanted, labels])
    return (query, wanted, reference, labels), {"ref_includes_query": own}


def by_loops(arguments, options):
    """Return the scores of every query, in float64."""
    query, wanted, reference, labels = arguments
    ranked = rankings(query, reference, ref_includes_query=options["ref_includes_query"])
    return scores_by_loops(ranked, wanted, labels, **options)


@pytest.mark.parametrize(("own", "queries", "references"), [(False, 1000, 1000), (True, 2000, 0), (True, 500, 4500)])
@pytest.mark.parametrize(("classes", "kind"), [(8, StreamedSearcher), (200, FaissSearcher)])
def test_agrees_with_pml(own, queries, references, classes, kind, searchers_used):
    arguments, options = case(own, queries, references, classes=classes, width=16)
    assert (arguments[0][:50] @ arguments[2].T).min() < -0.5  # in all directions
    # PML ranks all references at k=None. It converts labels to float32: here none is above 2**24.
    calculator = AccuracyCalculator(include=PML_METRICS, device=torch.device("cpu"), k=None)
    expected = calculator.get_accuracy(*arguments, **options)
    ours = retrieval_metrics(*arguments, chunk_size=300, **options)
    assert [type(searcher) for searcher in searchers_used] == [kind]  # one index for all chunks
    assert {metric: ours[metric] for metric in PML_METRICS} == pytest.approx(expected, abs=1e-6)
    assert ours["lone_queries"] >= queries / 17
    assert 0.05 < ours["mean_average_precision_at_r"] < ours["precision_at_1"] < 0.95  # no two metrics are equal


@pytest.mark.parametrize(("own", "others"), [(False, 120), (True, 0), (True, 120)])
@pytest.mark.parametrize(
    ("make", "temperature"),
    # On a grid distances tie, and only weights of 1 have exact sums, so that the same votes tie.
    [(clustered, 0.07), (clustered, math.inf), (on_a_grid, math.inf)],
)
@pytest.mark.parametrize(
    ("kind", "at_r", "chunk_size", "threads"),
    [
        (FaissSearcher, True, None, 1),
        (FaissSearcher, False, 1, 3),
        (StreamedSearcher, True, 33, 2),
        (StreamedSearcher, False, 500, 7),
    ],
)
def test_agrees_with_loops(
    own, others, make, temperature, kind, at_r, chunk_size, threads, monkeypatch, searchers_used
):
    monkeypatch.setattr(indexes_module, "FAISS_MAX_K", 10_000 if kind is FaissSearcher else 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    arguments, options = case(own, 150, others, make=make, classes=8)
    options |= {"recall_at": (1, 3, 10), "knn_k": 7, "knn_temperature": temperature}
    expected = by_loops(arguments, options)
    means = {metric: np.nanmean(values) for metric, values in expected.items()}
    assert means["precision_at_1"] < means["recall_at_3"] < means["recall_at_10"]
    assert means["knn_accuracy"] != means["precision_at_1"]
    for metric in set() if at_r else {"r_precision", "mean_average_precision_at_r"}:
        del expected[metric], means[metric]
    options |= {"at_r": at_r, "chunk_size": chunk_size}
    found = retrieval_scores(*arguments, **options)
    assert [type(searcher) for searcher in searchers_used] == [kind]
    assert found.keys() == expected.keys()
    for metric, values in found.items():
        assert values == pytest.approx(expected[metric], abs=1e-6, nan_ok=True), metric
    counts = {"lone_queries": np.isnan(expected["precision_at_1"]).sum(), "zero_rows": 0}
    averages = retrieval_metrics(*map(torch.from_numpy, arguments), **options)
    assert averages | {"zero_rows": 0} == pytest.approx(means | counts, abs=1e-6)


@pytest.mark.parametrize("at_r", [True, False])
@pytest.mark.parametrize(("offset", "size"), [(0, 1e22), (1e4, 1e-22)])
def test_rankings_far_from_the_origin_and_of_any_size(at_r, offset, size):
    points, labels = clustered(1200, seed=1, width=16, classes=8)
    points = (points.astype(np.float64) + offset) * size
    options = {"ref_includes_query": True, "knn_temperature": 0.07 * size**2}
    expected = by_loops((points[:100], labels[:100], points, labels), options)
    found = retrieval_scores(points[:100], labels[:100], points, labels, at_r=at_r, **options)
    for metric, values in found.items():
        assert values == pytest.approx(expected[metric], abs=1e-6), metric
    assert 0.1 < expected["precision_at_1"].mean() < 0.95


def test_a_late_first_hit_is_ranked_among_all_in_blocks_of_bounded_size(monkeypatch):
    """The user's `chunk_size` suits FAISS; rows of distances are in blocks of `BLOCK_BYTES`."""
    points, labels = on_a_grid(300, seed=1, classes=3)[0], np.arange(300) // 2  # one relevant reference, at any rank
    ranked, first_ranks = [], StreamedSearcher.first_ranks

    def watched(self, rows, *others):
        ranked.append(len(rows))
        return first_ranks(self, rows, *others)

    monkeypatch.setattr(StreamedSearcher, "first_ranks", watched)
    monkeypatch.setattr("pml_supcon.search.exact.BLOCK_BYTES", 4 * 300 * 20)
    arguments, options = (points, labels, points, labels), {"ref_includes_query": True, "recall_at": (1,), "knn_k": 1}
    expected = by_loops(arguments, options)["mean_reciprocal_rank"]
    found = retrieval_scores(*arguments, **options, chunk_size=300)["mean_reciprocal_rank"]
    assert found == pytest.approx(expected, abs=1e-12)
    assert expected.min() < 1 / 250
    assert max(ranked) <= 20
    assert sum(ranked) > 200


@pytest.mark.parametrize("temperature", [0.5, math.inf])
@pytest.mark.parametrize(("rows", "k"), [(200, 20), (20, 150), (5, 1)])
def test_vote_agrees_with_sums_in_a_loop(temperature, rows, k):
    rng = np.random.default_rng(k)
    labels = rng.integers(-2, 6, size=(rows, k))
    distances = np.sort(rng.integers(0, 9, size=(rows, k)), axis=1).astype(np.float32)
    expected = []
    for near, apart in zip(labels, distances, strict=True):
        votes = {}  # nearest first, as `max` resolves ties
        for label, d in zip(near.tolist(), apart.tolist(), strict=True):
            votes[label] = votes.get(label, 0) + math.exp(-(d - float(apart[0])) / (2 * temperature))
        expected.append(max(votes, key=votes.get))
    assert knn_vote(labels, distances, temperature).tolist() == expected


def test_the_time_of_a_vote_does_not_grow_with_the_square_of_k():
    rng = np.random.default_rng(0)

    def seconds(k):
        labels = rng.integers(0, 10, size=(2**18 // k, k))
        distances = np.sort(rng.random(labels.shape), axis=1).astype(np.float32)
        times = []
        for _ in range(3):
            started = time.process_time()
            knn_vote(labels, distances, 0.07)
            times.append(time.process_time() - started)
        return min(times)

    # Both sort the same number of neighbours; a quadratic vote takes 64 times as long.
    assert seconds(2048) < 8 * seconds(32)


@pytest.mark.parametrize("label", [2**24, 2**53, -(2**63), 2**63 - 2])
def test_labels_of_any_size_are_compared_exactly(label):
    query, reference = np.array([[0.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    found = retrieval_metrics(query, np.array([label]), reference, np.array([label + 1, label]), recall_at=(1, 2))
    assert (found["precision_at_1"], found["recall_at_2"]) == (0.0, 1.0)


@pytest.mark.parametrize("temperature", [0.07, math.inf])
@pytest.mark.filterwarnings("error")
def test_places_that_an_index_left_empty_have_no_vote(temperature):
    none = -2
    labels = np.array([[5, none, none, none], [5, 3, none, none], [none] * 4])
    distances = np.array([[1.0, *[math.inf] * 3], [1.0, 1.0, math.inf, math.inf], [math.inf] * 4], np.float32)
    assert knn_vote(labels, distances, temperature).tolist() == [5, 5, none]


def test_fewer_references_than_recall_at_all_count_with_a_warning(caplog):
    reference, labels = np.eye(3), np.array([0, 1, 1])
    found = retrieval_metrics(reference[:1], labels[1:2], reference, labels, recall_at=(1, 100), knn_k=3)
    assert (found["recall_at_1"], found["recall_at_100"], found["knn_accuracy"]) == (0.0, 1.0, 0.0)
    assert [record.getMessage() for record in caplog.records] == [
        "`recall_at` asks for 100 neighbours, but there are 3 references: all count."
    ]


def test_one_reference_and_one_class():
    found = retrieval_metrics(np.eye(2), np.array([4, 9]), np.eye(2)[:1], np.array([4]), recall_at=(1,), knn_k=1)
    assert set(found.values()) == {1.0, 0.0}
    assert (found["mean_average_precision_at_r"], found["lone_queries"]) == (1.0, 1.0)


@pytest.mark.parametrize(("own", "zeros"), [(True, 2), (False, 3)])
def test_zero_rows_are_counted_with_a_warning(own, zeros, caplog):
    points, labels = np.eye(6), np.array([0, 0, 0, 1, 1, 1])
    points[[1, 4]] = 0
    queries = points[: 6 if own else 3], labels[: 6 if own else 3]
    found = retrieval_metrics(*queries, points, labels, ref_includes_query=own, knn_k=1, recall_at=(1,))
    assert found["zero_rows"] == zeros
    assert [record.getMessage() for record in caplog.records] == [
        f"{zeros} rows are zero: they have no direction, and their nearest neighbours mean nothing."
    ]


MEASURED = """
from pathlib import Path
import numpy as np, torch
from pml_supcon.metrics import retrieval_metrics

torch.set_num_threads(1)

def status(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0]) * 1024

def measure(rows, classes):
    points = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
    labels = np.arange(rows) % classes
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    retrieval_metrics(points, labels, points, labels, ref_includes_query=True)
    return status("VmHWM") - before

measure(2000, 5)
measure(2000, 100)
print([measure(15_000, 50), measure(15_000, 1000)])
"""


def test_memory_is_bounded():
    """Measure the peak of a process: all distances take 900 MB, all neighbours of classes of 300 about 290 MB."""
    blocks, faiss = measured(MEASURED)
    assert 20e6 < blocks < 200e6
    assert 0 < faiss < 100e6


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query_labels": np.array([0, 1])}, ValueError, r"`query_labels` .* shape \(3,\), but got shape \(2,\)"),
        ({"query": np.eye(3, dtype=int)}, TypeError, "`query` to be floating point, but got int64"),
        ({"query": np.eye(3)[:, :2]}, ValueError, r"the same width, but got shapes \(3, 2\) and \(3, 3\)"),
        ({"reference": np.eye(3) * 1e300}, ValueError, r"`reference` to be finite, .* infinity in 3 of 3 rows"),
        ({"reference": np.full((3, 3), 0.5)}, ValueError, "`reference` to have rows that differ, but all 3 are"),
        ({"query_labels": np.array([7, 8, 9])}, ValueError, "none of the 3 has one"),
        ({"query_labels": np.arange(3), "reference_labels": np.arange(3), "ref_includes_query": True}, ValueError,
         "none of the 3 has one"),
        ({"ref_includes_query": True, "query": np.eye(3)[::-1]}, ValueError, "`reference` to start with the queries"),
        ({"ref_includes_query": True, "query_labels": np.array([1, 0, 1])}, ValueError, "to start with the queries"),
        ({"recall_at": 5}, TypeError, "`recall_at` to be a sequence of integers, but got 5"),
        ({"knn_temperature": 0.0}, ValueError, "`knn_temperature` to be above 0, but got 0.0"),
        ({"query": np.zeros((3, 3))}, ValueError, "`query` to have a row that is not zero, but all 3 are"),
        ({"index": "exakt"}, ValueError, r"`index` to be one of exact, ivf, .* got 'exakt'; did you mean 'exact'"),
        ({"chunk_size": 0}, ValueError, "`chunk_size` to be at least 1, but got 0"),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected_and_what_came(change, error, message):
    labels = np.array([0, 0, 1])
    valid = {"query": np.eye(3), "query_labels": labels, "reference": np.eye(3), "reference_labels": labels}
    with pytest.raises(error, match=message):
        retrieval_metrics(**valid | change)
