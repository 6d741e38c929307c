"""The section "hard_mining" of the evaluation."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pml_supcon.evaluation.sections.hard_mining import hard_mining
from pml_supcon.metrics.hard_mining import hard_mining_curve

LOSSES = ["supcon_out", "supcon_in", "triplet"]


def clustered(rows, *, seed, classes=5, width=6, spread=0.6):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    return np.random.default_rng(9).normal(size=(classes, width))[labels] + spread * rng.normal(
        size=(rows, width)
    ), labels


def make_context(features, labels, notes, *, has_head=True, is_main=True, batch_size=20):
    def take(split, *, of):
        assert split == "test"
        return features[of] if is_main else torch.empty(0, 0)

    return SimpleNamespace(
        features=take,
        labels=lambda split: torch.from_numpy(labels),
        settings=SimpleNamespace(seed=4, mining_batches=3, mining_batch_size=batch_size),
        has_head=has_head,
        is_main=is_main,
        note=notes.append,
    )


@pytest.mark.parametrize("has_head", [True, False])
def test_section_draws_batches_of_the_heads_rows_where_there_is_a_head(has_head):
    encoder, labels = clustered(50, seed=1)
    features = {"encoder": torch.from_numpy(encoder).float(), "head": torch.from_numpy(encoder[:, ::2]).float()}
    if not has_head:
        del features["head"]
    notes = []
    found = asdict(hard_mining(make_context(features, labels, notes, has_head=has_head)))
    assert (notes, found["of"]) == ([], "head" if has_head else "encoder")
    assert found == json.loads(json.dumps(found))
    for loss in LOSSES:
        options = {"loss": loss, "bins": 40, "batch_size": 20, "batches": 3, "seed": 4}
        assert found["losses"][loss] == hard_mining_curve(features[found["of"]], labels, **options)
    assert hard_mining(make_context(features, labels, notes, has_head=has_head, is_main=False)) is None


def test_section_notes_what_it_leaves_out():
    points, labels = clustered(30, seed=1)
    points[[3, 7]] = 0
    notes = []
    context = make_context({"head": torch.from_numpy(points)}, labels, notes, batch_size=256)
    assert hard_mining(context).batch_size == 28
    assert notes[0].startswith("2 of 30 test images have a zero row")
    assert notes[1] == "Shares of the gradient are from batches of 28 test images, not 256: there are no more."
