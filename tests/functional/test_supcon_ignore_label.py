"""The option `ignore_label`: unlabelled rows are contrasted, and positives of the views of their own sample alone."""

import pytest
import torch
from helpers import supcon_oracle
from helpers.supcon_batches import BACKENDS, OPTION_NAMES, OPTIONS, assert_equals_oracle, random_rows
from torch.autograd import gradcheck

from pml_supcon import losses
from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon.classes import separate_ignored
from pml_supcon.functional.supcon.tiled import layout
from pml_supcon.targets import LabelSets

LABELS = torch.tensor([4, -1, 4, 0, -1, -1, 0])


@pytest.fixture(params=[*BACKENDS, "tiled in tiles of 3"])
def backend(request, monkeypatch):
    if request.param == "tiled in tiles of 3":
        monkeypatch.setattr(layout, "TILE", 3)
    return request.param.split()[0]


@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_oracle(backend, summation, denominator):
    given = {"summation": summation, "denominator": denominator, "temperature": 0.5, "ignore_label": -1}
    rows = random_rows(14, 3)
    for samples in (LABELS, torch.full((7,), -1), torch.full((7,), 3)):
        labels = samples.repeat(2)
        for more in ({}, {"positives_cap": 2}, {"contrast_mode": "one"}):
            expected = supcon_oracle.anchor_losses(rows, labels, num_views=2, **given, **more)
            ours = supcon_loss(rows, labels, num_views=2, backend=backend, **given, **more)
            assert_equals_oracle(ours, expected, f"{samples}, {more}")
        expected = supcon_oracle.anchor_losses(rows, labels, **given)  # unknown views
        assert_equals_oracle(supcon_loss(rows, labels, backend=backend, **given), expected, "unknown views")
        references = {"ref_emb": random_rows(6, 3), "ref_labels": torch.tensor([-1, 4, 0, 0, -1, 9])}
        for views in (1, 2):
            expected = supcon_oracle.anchor_losses(rows, labels, num_views=views, **references, **given)
            ours = supcon_loss(rows, labels, num_views=views, backend=backend, **references, **given)
            assert_equals_oracle(ours, expected, "references")


@pytest.mark.parametrize("summation", ["out", "in"])
def test_balanced_classes(backend, summation):
    given = {"summation": summation, "temperature": 0.5, "ignore_label": -1, "class_balanced": True, "num_views": 2}
    rows, labels = random_rows(14, 3), LABELS.repeat(2)
    expected = supcon_oracle.anchor_losses(rows, labels, **given)
    assert_equals_oracle(supcon_loss(rows, labels, backend=backend, **given), expected, "balanced")


def test_unlabelled_views_of_a_batch_in_its_references(backend):
    """A memory that starts with the batch: the two views of a sample keep each other, memory rows are negatives."""
    rows, memory = random_rows(8, 3), random_rows(5, 3)
    labels, memory_labels = torch.tensor([1, -1, -1, 1]).repeat(2), torch.tensor([-1, 1, -1, -1, 7])
    given = {"ref_emb": torch.cat([rows, memory]), "ref_starts_with_batch": True, "num_views": 2, "backend": backend}
    ours = supcon_loss(rows, labels, ref_labels=torch.cat([labels, memory_labels]), ignore_label=-1, **given)
    own = torch.tensor([1, 100, 101, 1]).repeat(2)
    right = supcon_loss(rows, own, ref_labels=torch.cat([own, torch.tensor([200, 1, 201, 202, 7])]), **given)
    assert ours.valid.all()
    torch.testing.assert_close(ours, right, rtol=0, atol=1e-12)


def test_gradients(backend):
    rows, labels = random_rows(6, 3).requires_grad_(), torch.tensor([5, -1, 5]).repeat(2)
    given = {"num_views": 2, "temperature": 0.5, "ignore_label": -1, "backend": backend}
    assert gradcheck(lambda rows: supcon_loss(rows, labels, **given).losses, rows)


def test_no_labels_at_all_is_simclr(backend):
    embeddings = random_rows(12, 3).view(6, 2, 3)
    loss = losses.SupConLossOut(ignore_label=-100, backend=backend)
    assert loss(embeddings, torch.full((6,), -100)) == losses.SupConLossOut(backend=backend)(embeddings)
    # samples without labels are numbered, and no number of them is an ignored label
    assert losses.SupConLossOut(ignore_label=0, backend=backend)(embeddings) == loss(embeddings)


def test_without_the_option_minus_one_is_a_class(backend):
    rows, labels = random_rows(7, 3), LABELS
    ours = supcon_loss(rows, labels, backend=backend)
    assert torch.equal(ours.losses, supcon_loss(rows, torch.where(labels < 0, 77, labels), backend=backend).losses)
    assert ours.valid.all()
    assert supcon_loss(rows, labels, ignore_label=-1).valid.tolist() == (labels != -1).tolist()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.uint64, torch.int64])
def test_classes_of_any_integer_dtype(dtype):
    labels = torch.tensor([255, 3, 255, 0, 3, 3], dtype=torch.int64).to(dtype)
    ignored = -1 if dtype == torch.int8 else 255
    classes, none = separate_ignored(labels.to(torch.int64), None, ignored, None)
    assert none is None
    assert len(set(classes[[0, 2]].tolist())) == 2
    assert classes[1] == classes[4] == classes[5] != classes[3]
    valid = supcon_loss(random_rows(6, 3), labels, ignore_label=ignored).valid
    assert valid.tolist() == [False, True, False, False, True, True]


def test_extreme_labels_and_no_rows():
    low, high = -(2**63), 2**63 - 1
    classes, refs = separate_ignored(torch.tensor([high, low, high]), torch.tensor([low, high, 0]), high, None)
    assert len({*classes.tolist(), *refs.tolist()}) == 5  # low twice
    assert classes[1] == refs[0]
    empty = torch.zeros(0, dtype=torch.int64)
    assert [len(each) for each in separate_ignored(empty, empty, -1, 2)] == [0, 0]


def test_the_queue():
    """Unlabelled rows of the queue are negatives of all anchors."""
    first, second = random_rows(6, 3).view(3, 2, 3), random_rows(6, 3).view(3, 2, 3)
    labels = torch.tensor([-1, 2, -1])
    loss = losses.SupConLossOut(num_views=2, ignore_label=-1)
    queue = losses.QueueLoss(loss, embedding_size=3, queue_size=12, dtype=torch.float64)
    queue(first.transpose(0, 1).flatten(0, 1), labels.repeat(2))
    rows, queued = second.transpose(0, 1).flatten(0, 1), queue.queue_embeddings[:6].clone()
    own = torch.tensor([50, 2, 51]).repeat(2)
    expected = supcon_loss(
        rows, own, ref_emb=torch.cat([rows, queued]), ref_starts_with_batch=True,
        ref_labels=torch.cat([own, torch.tensor([60, 2, 61, 62, 2, 63])]),
    ).mean()  # fmt: skip
    torch.testing.assert_close(queue(rows, labels.repeat(2)), expected)


def test_the_oracle_rejects_mistakes():
    rows, labels = random_rows(14, 3), LABELS.repeat(2)
    expected = supcon_oracle.anchor_losses(rows, labels, num_views=2, ignore_label=-1)
    assert_equals_oracle(supcon_loss(rows, labels, num_views=2, ignore_label=-1), expected, "right")
    unknown_views = supcon_loss(rows, labels, ignore_label=-1)
    left_out = supcon_loss(rows, labels, num_views=2, anchors=labels != -1)
    for wrong in (supcon_loss(rows, labels, num_views=2), unknown_views, left_out):
        with pytest.raises(AssertionError):
            assert_equals_oracle(wrong, expected, "wrong")


def test_errors():
    rows, labels = torch.randn(6, 3), torch.arange(6) // 2
    with pytest.raises(TypeError, match=r"`ignore_label` to be an integer, but got -1.0"):
        losses.SupConLossOut(ignore_label=-1.0)
    with pytest.raises(ValueError, match="`ignore_label` to be an integer of 64 bits"):
        losses.SupConLossOut(ignore_label=2**63)
    with pytest.raises(ValueError, match="no `target` with `ignore_label`, which is a class label, but got LabelSets"):
        losses.SupConLossOut(ignore_label=-1, target=LabelSets())
    pairs = (torch.tensor([0]), torch.tensor([1])) * 2
    with pytest.raises(ValueError, match="no `indices_tuple` with `ignore_label`: listed pairs replace the labels"):
        supcon_loss(rows, labels, indices_tuple=pairs, ignore_label=-1)


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_compiles_whole(backend):
    torch.compiler.reset()
    loss = losses.SupConLossOut(backend=backend, ignore_label=-1)

    def step(rows, labels):
        return loss(rows, labels)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for number in (6, 9):
        rows, labels = torch.randn(number, 2, 4, requires_grad=True), torch.arange(number) % 4 - 1
        results = [torch.autograd.grad(way(rows, labels), rows) for way in (step, compiled)]
        torch.testing.assert_close(*results)
    torch.compiler.reset()
