import logging
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.labelled_points import clustered, on_a_grid, rankings, scores_by_loops, with_lone_labels
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from pml_supcon.metrics import retrieval_metrics
from pml_supcon.metrics._ranking import knn_vote
from pml_supcon.metrics.retrieval import retrieval_scores
from pml_supcon.search import indexes as indexes_module
from pml_supcon.search.exact import FaissSearcher, StreamedSearcher

PML_METRICS = ("precision_at_1", "mean_reciprocal_rank", "r_precision", "mean_average_precision_at_r")
CPU = torch.device("cpu")
CASES = ("separate", "within", "within and more")


@pytest.fixture(autouse=True)
def one_thread():
    """Restore one thread after a test that sets more."""
    yield
    torch.set_num_threads(1)


def case(name, *, queries, references, make=clustered, **options):
    """Arguments of `retrieval_metrics`, and how many queries are lone in them at least."""
    query, wanted = make(queries, seed=1, **options)
    reference, labels = make(references, seed=2, **options)
    lone = np.arange(0, queries, 17)
    wanted = with_lone_labels(wanted, lone)
    labels = with_lone_labels(labels, np.arange(3, references, 23), start=5000)
    if name == "separate":
        return (query, wanted, reference, labels), {"ref_includes_query": False}, len(lone)
    if name == "within":
        return (query, wanted, query, wanted), {"ref_includes_query": True}, len(lone)
    both = np.concatenate([query, reference]), np.concatenate([wanted, labels])
    return (query, wanted, *both), {"ref_includes_query": True}, len(lone)


def by_loops(arguments, options):
    """The scores of every query, in float64."""
    query, wanted, reference, labels = arguments
    own = options["ref_includes_query"]
    return scores_by_loops(rankings(query, reference, ref_includes_query=own), wanted, labels, **options)


def pml(arguments, options, *, include=PML_METRICS, k=None):
    return AccuracyCalculator(include=include, device=CPU, k=k).get_accuracy(*arguments, **options)


# Against PML: at k=None it ranks all references. It converts labels to float32, hence none above 2**24 here.


@pytest.mark.parametrize(
    ("name", "queries", "references"), [("separate", 1000, 1000), ("within", 2000, 0), ("within and more", 500, 4500)]
)
@pytest.mark.parametrize(("classes", "kind"), [(8, StreamedSearcher), (200, FaissSearcher)])
def test_agrees_with_pml(name, queries, references, classes, kind, searchers_used):
    arguments, options, lone = case(name, queries=queries, references=references, classes=classes, width=16)
    assert (arguments[0][:50] @ arguments[2].T).min() < -0.5  # in all directions
    expected = pml(arguments, options)
    ours = retrieval_metrics(*arguments, chunk_size=300, **options)
    assert [type(searcher) for searcher in searchers_used] == [kind]  # one index for all chunks
    assert {metric: ours[metric] for metric in PML_METRICS} == pytest.approx(expected, abs=1e-6)
    assert ours["lone_queries"] >= lone > 0
    assert 0.05 < ours["mean_average_precision_at_r"] < ours["precision_at_1"] < 0.95  # the case tells metrics apart


@pytest.mark.parametrize(("name", "queries", "references"), [("within", 2000, 0), ("within and more", 500, 4500)])
@pytest.mark.parametrize("classes", [8, 40])
def test_agrees_with_pml_on_exact_ties_and_duplicates(name, queries, references, classes):
    # Where PML ranks all references, FAISS orders them by distance and then by row. PML 2.9 then drops each query's
    # own row among its duplicates, at any rank.
    arguments, options, _ = case(name, queries=queries, references=references, make=on_a_grid, classes=classes)
    assert np.unique(arguments[2], axis=0, return_counts=True)[1].max() > 3
    ours = retrieval_metrics(*arguments, **options)
    assert {metric: ours[metric] for metric in PML_METRICS} == pytest.approx(pml(arguments, options), abs=1e-6)
    assert 0.02 < ours["mean_average_precision_at_r"] < ours["precision_at_1"] < 0.95


# Against the definitions


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("knn_temperature", [0.07, math.inf])
def test_agrees_with_loops_on_directions(name, knn_temperature):
    arguments, options, _ = case(name, queries=150, references=120)
    options |= {"recall_at": (1, 3, 10), "knn_k": 7, "knn_temperature": knn_temperature}
    expected = by_loops(arguments, options)
    found = retrieval_scores(*arguments, **options)
    assert found.keys() == expected.keys()
    for metric, values in found.items():
        assert values == pytest.approx(expected[metric], abs=1e-6, nan_ok=True), metric
    means = {metric: np.nanmean(values) for metric, values in expected.items()}
    lone = np.isnan(expected["precision_at_1"]).sum()
    wanted = means | {"lone_queries": lone, "zero_rows": 0}
    assert retrieval_metrics(*map(torch.from_numpy, arguments), **options) == pytest.approx(wanted, abs=1e-6)
    assert means["precision_at_1"] < means["recall_at_3"] < means["recall_at_10"]
    assert means["knn_accuracy"] != means["precision_at_1"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("at_r", [True, False])
@pytest.mark.parametrize("faiss_max_k", [0, 10_000])
def test_agrees_with_loops_on_exact_ties(name, at_r, faiss_max_k, monkeypatch, searchers_used):
    monkeypatch.setattr(indexes_module, "FAISS_MAX_K", faiss_max_k)
    arguments, options, _ = case(name, queries=200, references=150, make=on_a_grid, classes=4)
    # Weights of 1 are added up exactly, and so decide the same ties.
    options |= {"knn_k": 9, "knn_temperature": math.inf}
    expected = by_loops(arguments, options)
    found = retrieval_scores(*arguments, at_r=at_r, **options)
    assert [type(searcher) for searcher in searchers_used] == [FaissSearcher if faiss_max_k else StreamedSearcher]
    left_out = set() if at_r else {"r_precision", "mean_average_precision_at_r"}
    assert found.keys() == expected.keys() - left_out
    for metric, values in found.items():
        assert values == pytest.approx(expected[metric], abs=1e-12, nan_ok=True), metric


@pytest.mark.parametrize("name", CASES)
def test_both_searches_chunks_and_threads_give_the_same(name, monkeypatch):
    arguments, options, _ = case(name, queries=500, references=400, make=on_a_grid, classes=10)
    whole = retrieval_scores(*arguments, chunk_size=10_000, **options)
    for faiss_max_k in (0, 10_000):
        monkeypatch.setattr(indexes_module, "FAISS_MAX_K", faiss_max_k)
        for chunk_size, threads in [(None, 1), (1, 3), (33, 2), (500, 7)]:
            torch.set_num_threads(threads)
            found = retrieval_scores(*arguments, chunk_size=chunk_size, **options)
            for metric, values in whole.items():
                assert found[metric] == pytest.approx(values, abs=1e-12, nan_ok=True), (metric, chunk_size, threads)


def test_a_late_first_hit_is_ranked_among_all():
    points, _ = on_a_grid(300, seed=1, classes=3)
    labels = np.arange(300) // 2  # one relevant reference each, anywhere
    options = {"ref_includes_query": True, "recall_at": (1,), "knn_k": 1}
    arguments = points, labels, points, labels
    expected = by_loops(arguments, options)["mean_reciprocal_rank"]
    assert expected.min() < 1 / 250
    assert retrieval_scores(*arguments, **options)["mean_reciprocal_rank"] == pytest.approx(expected, abs=1e-12)


def test_a_query_does_not_find_itself_among_duplicates():
    points = clustered(40, seed=0)[0].repeat(2, axis=0)  # every twin has the other label
    labels = np.tile([0, 1], 40)
    found = retrieval_metrics(points, labels, points, labels, ref_includes_query=True)
    assert found["precision_at_1"] == 0.0


def test_agrees_with_pml_where_all_points_but_one_are_one():
    points, labels = np.ones((50, 4), dtype=np.float32), np.arange(50)
    points[0] = -1
    labels[48:] = 7000  # two relevant rows, the last that FAISS would list
    arguments, options = (points, labels, points, labels), {"ref_includes_query": True}
    ours = retrieval_metrics(*arguments, recall_at=(1, 49), knn_k=1, **options)
    assert {metric: ours[metric] for metric in PML_METRICS} == pytest.approx(pml(arguments, options), abs=1e-6)
    assert (ours["recall_at_49"], ours["lone_queries"]) == (1.0, 48.0)


@pytest.mark.parametrize("at_r", [True, False])
@pytest.mark.parametrize(("offset", "size"), [(1e4, 1), (0, 1e-22), (0, 1e22), (1e4, 1e-22)])
def test_rankings_far_from_the_origin_and_of_any_size(at_r, offset, size):
    points, labels = clustered(1200, seed=1, width=16, classes=8)
    points = (points.astype(np.float64) + offset) * size
    options = {"ref_includes_query": True, "knn_temperature": 0.07 * size**2}
    expected = by_loops((points[:100], labels[:100], points, labels), options)
    found = retrieval_scores(points[:100], labels[:100], points, labels, at_r=at_r, **options)
    for metric, values in found.items():
        assert values == pytest.approx(expected[metric], abs=1e-6), metric
    assert 0.1 < expected["precision_at_1"].mean() < 0.95


def test_a_late_pass_keeps_to_its_own_memory(monkeypatch):
    """A chunk of the user's, which FAISS takes whole, is not one of rows of distances."""
    points, labels = on_a_grid(300, seed=1, classes=3)[0], np.arange(300) // 2
    ranked, first_ranks = [], StreamedSearcher.first_ranks

    def watched(self, rows, *others):
        ranked.append(len(rows))
        return first_ranks(self, rows, *others)

    monkeypatch.setattr(StreamedSearcher, "first_ranks", watched)
    monkeypatch.setattr("pml_supcon.search.exact.BLOCK_BYTES", 4 * 300 * 20)
    retrieval_scores(points, labels, points, labels, ref_includes_query=True, recall_at=(1,), knn_k=1, chunk_size=300)
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
        votes = {}  # in the order of the nearest
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

    assert seconds(2048) < 8 * seconds(32)  # of as many neighbours in all; with the square it is 64 times


@pytest.mark.parametrize("label", [2**24, 2**53, -(2**63), 2**63 - 2])
def test_labels_of_any_size_are_told_apart(label):
    query, reference = np.array([[0.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    found = retrieval_metrics(query, np.array([label]), reference, np.array([label + 1, label]), recall_at=(1, 2))
    assert (found["precision_at_1"], found["recall_at_2"]) == (0.0, 1.0)


def test_vote_weighs_neighbours_by_distance_and_breaks_ties_by_the_nearest():
    query, wanted = np.array([[1.0]]), np.array([1])
    reference = 1 + np.array([[0.10], [0.11], [0.12], [0.13], [3.0]])

    def vote(labels, k, temperature):
        found = retrieval_metrics(
            query, wanted, reference, np.array([*labels, 1]), knn_k=k, knn_temperature=temperature
        )
        return found["knn_accuracy"]

    assert vote([1, 2, 2, 1], 4, math.inf) == 1.0  # two against two: 1 is nearer
    assert vote([2, 1, 1, 2], 4, math.inf) == 0.0
    assert vote([1, 2, 2, 2], 4, math.inf) == 0.0
    assert vote([1, 2, 2, 2], 4, 1e-4) == 1.0  # so cold that the nearest alone decides
    assert vote([1, 2, 2, 2], 4, 1.0) == 0.0
    assert vote([1, 2, 2, 2], 2, math.inf) == 1.0


@pytest.mark.parametrize("temperature", [0.07, math.inf])
@pytest.mark.filterwarnings("error")
def test_places_that_an_index_left_empty_have_no_vote(temperature):
    none = -2
    labels = np.array([[5, none, none, none], [5, 3, none, none], [none] * 4])
    distances = np.array([[1.0, *[math.inf] * 3], [1.0, 1.0, math.inf, math.inf], [math.inf] * 4], np.float32)
    assert knn_vote(labels, distances, temperature).tolist() == [5, 5, none]


def test_fewer_references_than_asked_for_all_count_and_are_told(caplog):
    reference, labels = np.eye(3), np.array([0, 1, 1])
    with caplog.at_level(logging.WARNING):
        found = retrieval_metrics(reference[:1], labels[1:2], reference, labels, recall_at=(1, 100), knn_k=3)
    assert (found["recall_at_1"], found["recall_at_100"], found["knn_accuracy"]) == (0.0, 1.0, 0.0)
    assert [record.getMessage() for record in caplog.records] == [
        "`recall_at` asks for 100 neighbours, but there are 3 references: all count."
    ]


def test_one_reference_and_one_class():
    found = retrieval_metrics(np.eye(2), np.array([4, 9]), np.eye(2)[:1], np.array([4]), recall_at=(1,), knn_k=1)
    assert set(found.values()) == {1.0, 0.0}
    assert (found["mean_average_precision_at_r"], found["lone_queries"]) == (1.0, 1.0)


def test_lone_queries_have_no_score():
    points, labels = np.eye(4), np.array([1, 2, 2, 3])
    for values in retrieval_scores(points, labels, points, labels, ref_includes_query=True, knn_k=1).values():
        assert np.isnan(values).tolist() == [True, False, False, True]


@pytest.mark.parametrize(("own", "zeros"), [(True, 2), (False, 3)])
def test_zero_rows_are_counted_and_told(own, zeros, caplog):
    points, labels = np.eye(6), np.array([0, 0, 0, 1, 1, 1])
    points[[1, 4]] = 0
    queries = 6 if own else 3
    with caplog.at_level(logging.WARNING):
        found = retrieval_metrics(
            points[:queries], labels[:queries], points, labels, ref_includes_query=own, knn_k=1, recall_at=(1,)
        )
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
print(measure(15_000, 50), measure(15_000, 1000))
"""


def test_memory_is_bounded():
    """The peak of the process. All distances at once are 900 MB, all neighbours of a class of 300 about 290 MB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not reset the peak of a process")
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    blocks, faiss = map(int, done.stdout.split())
    assert 20e6 < blocks < 200e6
    assert 0 < faiss < 100e6


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query_labels": np.array([0, 1])}, ValueError, r"`query_labels` .* shape \(3,\), but got shape \(2,\)"),
        ({"reference_labels": np.zeros((3, 1), int)}, ValueError, r"`reference_labels` .* got shape \(3, 1\)"),
        ({"query": np.eye(3, dtype=int)}, TypeError, "`query` to be floating point, but got int64"),
        ({"query": np.eye(3)[:, :2]}, ValueError, r"the same width, but got shapes \(3, 2\) and \(3, 3\)"),
        ({"reference": np.eye(3) * 1e300}, ValueError, r"`reference` to be finite, .* infinity in 3 of 3 rows"),
        ({"reference": np.diag([1, 1, 1e30])}, ValueError, "squared distances fit into float32"),
        ({"reference": np.full((3, 3), 0.5)}, ValueError, "`reference` to have rows that differ, but all 3 are"),
        ({"index": 3}, TypeError, "`index` to be a string, but got 3"),
        ({"query_labels": np.array([7, 8, 9])}, ValueError, "none of the 3 has one"),
        ({"query_labels": np.arange(3), "reference_labels": np.arange(3), "ref_includes_query": True}, ValueError,
         "none of the 3 has one"),
        ({"ref_includes_query": True, "query": np.eye(3)[::-1]}, ValueError, "`reference` to start with the queries"),
        ({"ref_includes_query": True, "query_labels": np.array([1, 0, 1])}, ValueError, "to start with the queries"),
        ({"ref_includes_query": True, "reference": np.eye(3)[:2], "reference_labels": np.array([0, 0])}, ValueError,
         r"3 queries, 2 references"),
        ({"recall_at": (1, 0)}, ValueError, "`recall_at` to be at least 1, but got 0"),
        ({"recall_at": 5}, TypeError, "`recall_at` to be a sequence of integers, but got 5"),
        ({"knn_k": 0}, ValueError, "`knn_k` to be at least 1, but got 0"),
        ({"knn_temperature": 0.0}, ValueError, "`knn_temperature` to be above 0, but got 0.0"),
        ({"query": np.zeros((3, 3))}, ValueError, "`query` to have a row that is not zero, but all 3 are"),
        ({"reference": np.zeros((3, 3))}, ValueError, "`reference` to have a row that is not zero, but all 3 are"),
        ({"index": "exakt"}, ValueError, r"`index` to be one of exact, ivf, .* got 'exakt'; did you mean 'exact'"),
        ({"chunk_size": 0}, ValueError, "`chunk_size` to be at least 1, but got 0"),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected_and_what_came(change, error, message):
    labels = np.array([0, 0, 1])
    valid = {"query": np.eye(3), "query_labels": labels, "reference": np.eye(3), "reference_labels": labels}
    with pytest.raises(error, match=message):
        retrieval_metrics(**valid | change)
