"""The gallery of the worst queries, against loops."""

import numpy as np
import pytest
import torch

from pml_supcon.metrics import gallery as module
from pml_supcon.metrics.gallery import gallery

NAMES = ["ant", "bee", "cat", "dog"]


def by_loops(query, wanted, reference, labels, *, neighbours, own):
    """(score, query, [(reference, cosine), ...]) of each query that has a relevant reference."""
    found = []
    for q in range(len(query)):
        others = [r for r in range(len(reference)) if not (own and r == q)]
        relevant = sum(labels[r] == wanted[q] for r in others)
        if not relevant:
            continue
        cosines = {r: query[q] @ reference[r] / np.linalg.norm(query[q]) / np.linalg.norm(reference[r]) for r in others}
        nearest = sorted(others, key=lambda r: -cosines[r])[:neighbours]
        hits, total = 0, 0.0
        for rank, r in enumerate(nearest, start=1):
            if labels[r] == wanted[q]:
                hits += 1
                total += hits / rank
        found.append((total / min(len(nearest), relevant), q, [(r, cosines[r]) for r in nearest]))
    return found


def points(rows, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(NAMES), size=rows)
    return rng.normal(size=(rows, 5)) + 1.2 * np.eye(len(NAMES), 5)[labels], labels


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("block", [3, 4096])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_agrees_with_loops(monkeypatch, own, block, kind):
    monkeypatch.setattr(module, "BLOCK", block)
    (query, wanted), (reference, labels) = points(40, 1), points(60, 2)
    if own:
        reference, labels = np.concatenate([query, reference]), np.concatenate([wanted, labels])
    wanted[7] = 3
    labels[labels == 3] = 2  # no reference of the last class, except what `own` brings
    if own:
        labels[: len(wanted)] = wanted
    expected = {
        q: (score, near) for score, q, near in by_loops(query, wanted, reference, labels, neighbours=6, own=own)
    }
    found = gallery(*map(kind, (query, wanted, reference, labels)), NAMES, queries=15, neighbours=6, own=own)
    assert len(found) == 15
    scores = [row["score"] for row in found]
    assert scores == sorted(scores)
    assert scores == pytest.approx(sorted(score for score, _ in expected.values())[:15])
    for row in found:
        score, near = expected[row["query"]]
        assert row["score"] == pytest.approx(score)
        assert row["label"] == NAMES[wanted[row["query"]]]
        assert [each["reference"] for each in row["neighbours"]] == [place for place, _ in near]
        assert [each["similarity"] for each in row["neighbours"]] == pytest.approx([c for _, c in near], abs=1e-6)
        for each in row["neighbours"]:
            assert each["label"] == NAMES[labels[each["reference"]]]
            assert each["right"] == (labels[each["reference"]] == wanted[row["query"]])


def test_of_equal_scores_the_one_with_the_least_similar_right_neighbours_comes_first():
    query = np.array([[1.0, 0.0], [0.0, 1.0]])
    reference = np.array([[1.0, 0.0], [-0.6, 0.8]])
    found = gallery(query, np.array([0, 0]), reference, np.array([0, 0]), NAMES, neighbours=1, own=False)
    assert [(row["query"], row["score"]) for row in found] == [(1, 1.0), (0, 1.0)]


def test_of_equal_scores_the_surest_mistake_comes_first():
    query = np.array([[1.0, 0.0], [0.0, 1.0]])
    reference = np.array([[0.8, 0.6], [0.0, 1.0], [-1.0, -1.0]])
    found = gallery(query, np.array([0, 0]), reference, np.array([1, 1, 0]), NAMES, neighbours=1, own=False)
    assert [(row["query"], row["score"]) for row in found] == [(1, 0.0), (0, 0.0)]


def test_duplicates_of_the_query_are_neighbours_itself_is_not():
    rows = np.repeat(np.eye(2), 10, axis=0)
    labels = np.repeat([0, 1], 10)
    for row in gallery(rows, labels, rows, labels, NAMES, neighbours=3, own=True):
        near = [each["reference"] for each in row["neighbours"]]
        assert row["query"] not in near
        assert len(set(near)) == 3
        assert row["score"] == 1


def test_rows_of_zeros_are_similar_to_nothing():
    query, reference = np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 0.0]])
    found = gallery(query, np.array([0, 0]), reference, np.array([0, 0]), NAMES, own=False)
    cosines = {row["query"]: {each["reference"]: each["similarity"] for each in row["neighbours"]} for row in found}
    assert cosines == {0: {0: 0.0, 1: 0.0}, 1: {0: 1.0, 1: 0.0}}


def test_without_a_relevant_reference_there_is_nothing_to_show():
    assert gallery(np.eye(2), np.array([0, 1]), np.eye(2), np.array([2, 2]), NAMES, own=False) == []
    assert gallery(np.eye(1), np.array([0]), np.eye(1), np.array([0]), NAMES, own=True) == []


@pytest.mark.parametrize(("change", "error", "match"), [
    ({"queries": 0}, ValueError, "`queries` to be at least 1"),
    ({"neighbours": 2.0}, TypeError, "`neighbours` to be an integer"),
    ({"query": np.full((2, 2), np.nan)}, ValueError, "`query` to be finite"),
    ({"query": np.eye(2, 3)}, ValueError, "the same width"),
    ({"query_labels": np.array([0, 4])}, ValueError, "`query_labels` to be places in the 4 class names, but got 4"),
    ({"reference_labels": np.array([-1, 0, 1])}, ValueError, "`reference_labels` to be places .* but got -1"),
    ({"query_labels": np.array([1, 1]), "own": True}, ValueError, "`reference_labels` to start with `query_labels`"),
])  # fmt: skip
def test_bad_arguments(change, error, match):
    arguments = {"query": np.eye(2), "query_labels": np.array([0, 1]), "reference": np.eye(3, 2) + 1}
    arguments |= {"reference_labels": np.array([0, 1, 1]), "class_names": NAMES, "own": False}
    with pytest.raises(error, match=match):
        gallery(**{**arguments, **change})
