"""The boxes of a tile: all pairs of equal labels, each once, and few others."""

import pytest
import torch
from helpers.supcon_batches import random_rows

from pml_supcon.functional.supcon.options import SupConOptions
from pml_supcon.functional.supcon.problem import build_problem, check_batch
from pml_supcon.functional.supcon.tiled import layout
from pml_supcon.functional.supcon.tiled.layout import Layout


def layout_of(labels, ref_labels=None):
    references = {} if ref_labels is None else {"ref_emb": random_rows(len(ref_labels), 2), "ref_labels": ref_labels}
    problem = build_problem(check_batch(random_rows(len(labels), 2), labels, None), SupConOptions(), **references)
    return Layout.of(problem)[0]


@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 7, 30, 90])
def test_every_pair_of_equal_labels_is_in_one_box(monkeypatch, classes, references):
    monkeypatch.setattr(layout, "TILE", 20)
    monkeypatch.setattr(layout, "STRIP", 6)
    labels, ref_labels = torch.randint(0, classes, (90,)), torch.randint(0, classes, (70,)) if references else None
    sorted_pairs = layout_of(labels, ref_labels)
    covered = torch.zeros(90, 70 if references else 90, dtype=torch.int)
    in_boxes = torch.zeros_like(covered)
    for (a, r), boxes in sorted_pairs.tiles():
        covered[a, r] += 1
        for box in boxes:
            assert a.start <= box[0].start < box[0].stop <= a.stop
            assert r.start <= box[1].start < box[1].stop <= r.stop
            assert box[0].stop - box[0].start <= layout.STRIP
            in_boxes[box] += 1
    same = sorted_pairs.anchor_labels[:, None] == sorted_pairs.row_labels
    assert torch.equal(covered, torch.ones_like(covered) if references else covered.clamp(max=1))
    assert references or bool((covered + covered.T > 0).all())
    assert torch.equal(in_boxes[same], covered[same])
    assert int(in_boxes.max()) == 1


def test_boxes_end_where_classes_end():
    """Without it, strips of 128 rows would hold twice the pairs of classes of 80."""
    sorted_pairs = layout_of(torch.arange(2000) % 25)
    boxes = [box for (_, r), boxes in sorted_pairs.tiles() for box in boxes]
    area = sum((a.stop - a.start) * (r.stop - r.start) for a, r in boxes)
    assert area <= 1.2 * 25 * 80 * 80


def test_tiles_are_larger_where_labels_are_not_on_the_host(monkeypatch):
    monkeypatch.setattr(layout, "on_host", lambda labels: False)
    tiles = list(layout_of(torch.arange(5000) % 2).tiles())
    assert [tile for tile, _ in tiles] == [boxes[0] for _, boxes in tiles]
    assert [r.stop - r.start for (_, r), _ in tiles] == [4096, 904, 904]
