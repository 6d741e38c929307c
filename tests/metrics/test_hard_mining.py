import json
from functools import partial

import numpy as np
import pytest
import torch
from helpers.labelled_points import overlapping

from pml_supcon.functional.gradient_shares import gradient_shares
from pml_supcon.metrics.hard_mining import hard_mining_curve

OPTIONS = {"temperature": 0.3, "margin": 0.4}
clusters = partial(overlapping, classes=5, width=6, spread=0.6)


def curve_by_loops(batches, loss, bins):
    """Return `hard_mining_curve` of some batches, summed pair by pair over the anchors of all batches."""
    curve = {"summary": {}}
    for kind, low in (("positives", 0.0), ("negatives", -1.0)):
        share, even, count, anchors, mean, pulled = [0.0] * bins, [0.0] * bins, [0] * bins, 0, 0.0, 0.0
        for points, labels in batches:
            found = gradient_shares(torch.from_numpy(points), torch.from_numpy(labels), loss=loss, **OPTIONS)
            z = points / np.linalg.norm(points, axis=1, keepdims=True)
            for i in range(len(z)):
                js = [j for j in range(len(z)) if j != i and (labels[i] == labels[j]) == (kind == "positives")]
                if not sum(float(found.shares[i, j]) for j in js) > 0:
                    continue
                anchors += 1
                for j in js:
                    cosine = float(z[i] @ z[j])
                    hardness = 1 - cosine if kind == "positives" else cosine
                    place = int((hardness - low) / (2 / bins))
                    share[place] += float(found.shares[i, j])
                    even[place] += 1 / len(js)
                    count[place] += 1
                    mean += hardness / len(js)
                    pulled += hardness * float(found.shares[i, j])
        centres = [low + (place + 0.5) * 2 / bins for place in range(bins)]
        curve[kind] = [
            {"hardness": h, "share": s / anchors, "even_share": e / anchors, "ratio": s / e if e else None, "count": n}
            for h, s, e, n in zip(centres, share, even, count, strict=True)
        ]
        means = {"mean_hardness": mean / anchors, "gradient_hardness": pulled / anchors}
        curve["summary"][kind] = {"anchors": anchors} | means
    return curve


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for kind in ("positives", "negatives"):
        assert found["summary"][kind] == pytest.approx(expected["summary"][kind])
        for one, other in zip(found[kind], expected[kind], strict=True):
            assert one == pytest.approx(other)
        assert sum(one["share"] for one in found[kind]) == pytest.approx(1)


@pytest.mark.parametrize("loss", ["supcon_out", "supcon_in", "triplet"])
def test_curve_agrees_with_a_loop_over_pairs(loss):
    points, labels = clusters(40, seed=1)
    found = hard_mining_curve(points, labels, loss=loss, bins=9, **OPTIONS)
    assert_same(found, curve_by_loops([(points, labels)], loss, 9))
    assert found == json.loads(json.dumps(found))
    scaled = torch.from_numpy(points * np.linspace(1, 9, 40)[:, None])  # only directions count
    again = hard_mining_curve(scaled, torch.from_numpy(labels), loss=loss, bins=9, **OPTIONS)
    assert again["summary"]["positives"] == pytest.approx(found["summary"]["positives"])


def test_batches_are_drawn_by_the_seed_and_their_anchors_count_together():
    points, labels = clusters(60, seed=2)
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randperm(60, generator=generator)[:20].numpy() for _ in range(3)]
    options = {"bins": 8, "batch_size": 20, "batches": 3, **OPTIONS}
    found = hard_mining_curve(points, labels, seed=5, **options)
    assert_same(found, curve_by_loops([(points[chosen], labels[chosen]) for chosen in rows], "supcon_out", 8))
    assert hard_mining_curve(points, labels, seed=5, **options) == found
    assert hard_mining_curve(points, labels, seed=6, **options) != found
    state = torch.random.get_rng_state()
    hard_mining_curve(points, labels, seed=5, **options)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_no_triplet_with_a_loss_leaves_an_empty_curve():
    points, labels = np.eye(4)[[0, 0, 1, 1]] + 0.01 * np.eye(4), np.array([0, 0, 1, 1])
    found = hard_mining_curve(points, labels, loss="triplet", bins=3)
    assert found["summary"]["positives"] == {"anchors": 0, "mean_hardness": None, "gradient_hardness": None}
    assert [(one["share"], one["ratio"], one["count"]) for one in found["positives"]] == [(0.0, None, 0)] * 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": np.arange(4)}, ValueError, "`labels` with two equal ones, but no row has a positive"),
        ({"batch_size": 5}, ValueError, "`batch_size` to be between 2 and 4, the rows, but got 5"),
        ({"batch_size": 2.0}, TypeError, "`batch_size` to be an integer, but got 2.0"),
        ({"bins": 0}, ValueError, "`bins` to be at least 1"),
        ({"loss": "npairs"}, ValueError, "`loss` to be one of"),
        ({"embeddings": np.zeros((4, 2))}, ValueError, "finite and not zero, but got 4 of 4"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(change, error, message):
    with pytest.raises(error, match=message):
        hard_mining_curve(**({"embeddings": np.eye(4), "labels": np.array([0, 0, 1, 1])} | change))


def test_batches_without_positives_are_skipped_unless_all_are():
    points, labels = np.eye(6), np.array([0, 0, 1, 2, 3, 4])
    found = hard_mining_curve(points, labels, batch_size=3, batches=30)["summary"]
    assert 0 < found["positives"]["anchors"] < 60
    with pytest.raises(ValueError, match="within 1 batches of 2, but no row has a positive"):
        hard_mining_curve(points, np.arange(6), batch_size=2, batches=1)
