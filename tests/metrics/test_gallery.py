import numpy as np
import pytest
import torch
from helpers.labelled_points import overlapping, rankings
from sklearn.preprocessing import normalize

from pml_supcon.metrics.gallery import worst_queries


def by_loops(query, wanted, reference, labels, *, neighbours, own):
    """Return {query: (score, references, cosines)} of each query that has a relevant reference."""
    found = {}
    for q, (order, distances) in enumerate(rankings(normalize(query), normalize(reference), ref_includes_query=own)):
        relevant = int((labels == wanted[q]).sum()) - own
        if relevant:
            hits = labels[order[:neighbours]] == wanted[q]
            precisions = [hits[: rank + 1].mean() for rank in np.flatnonzero(hits)]
            cosines = 1 - distances[:neighbours] / 2
            found[q] = sum(precisions) / min(neighbours, relevant), order[:neighbours].tolist(), cosines.tolist()
    return found


@pytest.mark.parametrize(
    ("own", "block", "kind", "neighbours"),
    [(False, 3, np.asarray, 6), (True, 4096, torch.as_tensor, 40)],  # 40 are more than the relevant references
)
def test_agrees_with_loops(monkeypatch, own, block, kind, neighbours):
    monkeypatch.setattr("pml_supcon.metrics.gallery.BLOCK", block)
    (query, wanted), (reference, labels) = (
        overlapping(rows, seed=rows, classes=4, width=5, apart=0.7) for rows in (40, 60)
    )
    if own:
        reference, labels = np.concatenate([query, reference]), np.concatenate([wanted, labels])
    wanted[7] = 3
    labels[labels == 3] = 2  # no reference has the last label, except the queries themselves
    if own:
        labels[: len(wanted)] = wanted
    expected = by_loops(query, wanted, reference, labels, neighbours=neighbours, own=own)
    rows = map(kind, (query, wanted, reference, labels))
    found = worst_queries(*rows, queries=15, neighbours=neighbours, ref_includes_query=own)
    assert found.rows.shape == (15,)
    assert found.scores.tolist() == pytest.approx(sorted(score for score, _, _ in expected.values())[:15])
    for row, score, nearest, similarities in zip(*found, strict=True):
        assert score == pytest.approx(expected[row][0])
        assert nearest.tolist() == expected[row][1]
        assert similarities == pytest.approx(expected[row][2], abs=1e-6)


@pytest.mark.parametrize(
    ("reference", "labels", "score"),
    [
        ([[1.0, 0.0], [-0.6, 0.8]], [0, 0], 1.0),  # the least similar right neighbour first
        ([[0.8, 0.6], [0.0, 1.0], [-1.0, -1.0]], [1, 1, 0], 0.0),  # the most similar wrong neighbour first
    ],
)
def test_similarities_order_queries_of_equal_scores(reference, labels, score):
    found = worst_queries(np.eye(2), np.array([0, 0]), np.array(reference), np.array(labels), neighbours=1)
    assert (found.rows.tolist(), found.scores.tolist()) == ([1, 0], [score, score])


def test_duplicates_of_the_query_are_neighbours_and_the_query_is_not():
    rows, labels = np.repeat(np.eye(2), 10, axis=0), np.repeat([0, 1], 10)
    found = worst_queries(rows, labels, rows, labels, neighbours=3, ref_includes_query=True)
    assert (found.scores == 1).all()
    for row, neighbours in zip(found.rows, found.neighbours, strict=True):
        assert row not in neighbours
        assert len(set(neighbours)) == 3


def test_zero_rows_have_similarity_0():
    query, reference = np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 0.0]])
    found = worst_queries(query, np.array([0, 0]), reference, np.array([0, 0]))
    cosines = {row: dict(zip(*pair, strict=True)) for row, *pair in zip(found.rows, *found[2:], strict=True)}
    assert cosines == {0: {0: 0.0, 1: 0.0}, 1: {0: 1.0, 1: 0.0}}


@pytest.mark.parametrize(("rows", "labels", "own"), [(2, [7, -7], False), (1, [0], True)])
def test_without_a_relevant_reference_nothing_is_returned(rows, labels, own):
    reference_labels = np.array(labels if own else [2] * rows)
    found = worst_queries(np.eye(rows), np.array(labels), np.eye(rows), reference_labels, ref_includes_query=own)
    assert len(found.rows) == len(found.neighbours) == 0


@pytest.mark.parametrize(
    ("query", "options", "match"),
    [
        (np.eye(2), {"neighbours": 0}, "`neighbours` to be at least 1"),
        (np.eye(2, 3), {}, "the same width"),
        (np.eye(2), {"ref_includes_query": True}, "`reference_labels` to start with"),
    ],
)
def test_errors_say_what_was_expected(query, options, match):
    with pytest.raises(ValueError, match=match):
        worst_queries(query, np.array([1, 1]), np.eye(3, 2) + 1, np.array([0, 1, 1]), **options)


@pytest.mark.parametrize("value", ["", "no", None, 2.0, 1, np.array([])])
def test_the_switch_is_a_bool(value):
    with pytest.raises(TypeError, match="`ref_includes_query` to be True or False"):
        worst_queries(np.eye(2), np.array([0, 0]), np.eye(2), np.array([0, 0]), ref_includes_query=value)


def test_the_counts_may_be_integers_of_numpy():
    rows, labels = np.random.default_rng(0).normal(size=(6, 3)), np.arange(6) % 2
    found, right = (worst_queries(rows, labels, rows, labels, queries=n, neighbours=n) for n in (np.int64(2), 2))
    assert np.array_equal(found.neighbours, right.neighbours)
