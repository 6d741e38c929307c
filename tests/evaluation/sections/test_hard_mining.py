"""The section "hard_mining" of the evaluation."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from helpers.evaluation_contexts import StandInContext

from pml_supcon.evaluation.sections.hard_mining import hard_mining
from pml_supcon.metrics.hard_mining import hard_mining_curve


def make_context(rows=50, *, zeros=(), has_head=True, batch_size=20, **options):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, rows)
    points = rng.normal(size=(5, 6))[labels] + 0.6 * rng.normal(size=(rows, 6))
    points[list(zeros)] = 0
    settings = {"seed": 4, "mining_batches": 3, "mining_batch_size": batch_size}
    head = (lambda rows: rows[:, ::2]) if has_head else None
    test = (torch.from_numpy(points).float(), labels)
    return StandInContext(None, test, lambda images: images, head=head, settings=settings, **options)


@pytest.mark.parametrize("has_head", [True, False])
def test_section_is_the_curve_of_the_heads_rows_or_else_of_the_encoders(has_head):
    context = make_context(has_head=has_head)
    found = asdict(hard_mining(context))
    assert (context.notes, found["of"]) == ([], "head" if has_head else "encoder")
    assert found == json.loads(json.dumps(found))
    rows, labels = context.features("test", of=found["of"]), context.labels("test")
    for loss in ("supcon_out", "supcon_in", "triplet"):
        options = {"loss": loss, "bins": 40, "batch_size": 20, "batches": 3, "seed": 4}
        assert found["losses"][loss] == hard_mining_curve(rows, labels, **options)
    assert hard_mining(make_context(has_head=has_head, is_main=False)) is None


def test_section_notes_zero_rows_and_smaller_batches():
    context = make_context(30, zeros=(3, 7), batch_size=256)
    assert hard_mining(context).batch_size == 28
    assert context.notes[0].startswith("2 of 30 test images have a zero row")
    assert context.notes[1] == "Shares of the gradient are from batches of 28 test images, not 256: there are no more."
