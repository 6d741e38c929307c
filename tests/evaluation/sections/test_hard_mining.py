"""The section "hard_mining" of the evaluation."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from helpers.evaluation_contexts import StandInContext

from pml_supcon.evaluation.sections.hard_mining import hard_mining
from pml_supcon.metrics.hard_mining import hard_mining_curve

LOSSES = ["supcon_out", "supcon_in", "triplet"]


def clustered(rows, *, seed, classes=5, width=6, spread=0.6):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    return np.random.default_rng(9).normal(size=(classes, width))[labels] + spread * rng.normal(
        size=(rows, width)
    ), labels


def make_context(points, labels, *, has_head=True, batch_size=20, **options):
    settings = {"seed": 4, "mining_batches": 3, "mining_batch_size": batch_size}
    head = (lambda rows: rows[:, ::2]) if has_head else None
    rows = (torch.from_numpy(points).float(), labels)
    return StandInContext(None, rows, lambda images: images, head=head, settings=settings, **options)


@pytest.mark.parametrize("has_head", [True, False])
def test_section_draws_batches_of_the_heads_rows_where_there_is_a_head(has_head):
    points, labels = clustered(50, seed=1)
    context = make_context(points, labels, has_head=has_head)
    found = asdict(hard_mining(context))
    assert (context.notes, found["of"]) == ([], "head" if has_head else "encoder")
    assert found == json.loads(json.dumps(found))
    rows = context.features("test", of=found["of"])
    for loss in LOSSES:
        options = {"loss": loss, "bins": 40, "batch_size": 20, "batches": 3, "seed": 4}
        assert found["losses"][loss] == hard_mining_curve(rows, labels, **options)
    assert hard_mining(make_context(points, labels, has_head=has_head, is_main=False)) is None


def test_section_notes_what_it_leaves_out():
    points, labels = clustered(30, seed=1)
    points[[3, 7]] = 0
    context = make_context(points, labels, batch_size=256)
    assert hard_mining(context).batch_size == 28
    assert context.notes[0].startswith("2 of 30 test images have a zero row")
    assert context.notes[1] == "Shares of the gradient are from batches of 28 test images, not 256: there are no more."
