"""The mask `anchors`: only some rows are anchors, all are contrasted (Co2L's asymmetric loss)."""

import pytest
import torch
from helpers import supcon_oracle
from helpers.supcon_batches import (
    BACKENDS,
    OPTION_NAMES,
    OPTIONS,
    SPEC_LABELS,
    SPEC_ROWS,
    SPEC_TEMPERATURE,
    assert_equals_oracle,
    assert_gradients_equal,
    listed_pairs,
    random_rows,
)
from pytorch_metric_learning import reducers
from torch.autograd import gradcheck

from pml_supcon import losses
from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon.tiled import layout
from pml_supcon.targets import Hierarchy

SAMPLES = torch.tensor([True, False, True, False])


@pytest.fixture(params=[*BACKENDS, "tiled in tiles of 3"])
def backend(request, monkeypatch):
    if request.param == "tiled in tiles of 3":
        monkeypatch.setattr(layout, "TILE", 3)
    return request.param.split()[0]


@pytest.mark.parametrize("embeddings", [SPEC_ROWS, SPEC_ROWS.view(2, 4, 2).transpose(0, 1)])
@pytest.mark.parametrize("anchors", [SAMPLES, SAMPLES.repeat(2), SAMPLES[:, None].expand(4, 2)])
def test_the_value_of_the_specification(backend, embeddings, anchors):
    loss = losses.SupConLossOut(SPEC_TEMPERATURE, backend=backend, num_views=2)
    labels = SPEC_LABELS if embeddings.ndim == 3 else SPEC_LABELS.repeat(2)
    assert loss(embeddings, labels, anchors=anchors).item() == pytest.approx(1.969167779, abs=1e-9)


@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_oracle(backend, summation, denominator):
    given = {"num_views": 2, "summation": summation, "denominator": denominator, "temperature": 0.5}
    for samples in (torch.tensor([0, 0, 1, 0, 2]), torch.zeros(5, dtype=torch.int64)):
        rows, labels, anchors = random_rows(10, 3), samples.repeat(2), torch.rand(10) < 0.6
        for more in ({}, {"positives_cap": 2}, {"contrast_mode": "one"}):
            expected = supcon_oracle.anchor_losses(rows, labels, anchors=anchors.tolist(), **given, **more)
            ours = supcon_loss(rows, labels, anchors=anchors, backend=backend, **given, **more)
            assert_equals_oracle(ours, expected, f"{more}")
        references = {"ref_emb": random_rows(7, 3), "ref_labels": torch.arange(7) % 3}
        expected = supcon_oracle.anchor_losses(rows, labels, anchors=anchors.tolist(), **references, **given)
        assert_equals_oracle(
            supcon_loss(rows, labels, anchors=anchors, backend=backend, **references, **given), expected, "references"
        )


@pytest.mark.parametrize("summation", ["out", "in"])
def test_the_mask_of_the_first_view_is_contrast_mode_one(backend, summation):
    rows, labels = random_rows(12, 3).requires_grad_(), torch.tensor([0, 0, 1, 0, 1, 2]).repeat(2)
    given = {"num_views": 2, "summation": summation, "backend": backend}
    masked = supcon_loss(rows, labels, anchors=torch.arange(12) < 6, **given)
    one = supcon_loss(rows, labels, contrast_mode="one", **given)
    torch.testing.assert_close(masked.losses[:6], one.losses)
    assert masked.valid.tolist() == one.valid.tolist() + [False] * 6
    assert_gradients_equal(*(torch.autograd.grad(terms.mean(), rows)[0] for terms in (masked, one)))


def test_gradients(backend):
    rows, labels = random_rows(6, 3).requires_grad_(), torch.tensor([0, 0, 1, 0, 1, 2])
    mask = torch.tensor([True, False, True, True, False, True])
    assert gradcheck(lambda z: supcon_loss(z, labels, anchors=mask, backend=backend, temperature=0.5).losses, rows)


def test_all_or_no_rows_are_anchors(backend):
    rows, labels = random_rows(6, 3).requires_grad_(), torch.arange(6) % 2
    loss = losses.SupConLossOut(backend=backend)
    assert loss(rows, labels, anchors=torch.ones(6, dtype=torch.bool)) == loss(rows, labels)
    nothing = loss(rows, labels, anchors=torch.zeros(6, dtype=torch.bool))
    assert nothing == 0
    nothing.backward()
    assert not rows.grad.any()


def test_listed_pairs_and_hierarchies(backend):
    rows, labels, mask = random_rows(8, 3), torch.arange(8) % 3, torch.arange(8) % 2 == 0
    given = {"temperature": 0.5, "backend": backend, "anchors": mask}
    by_label = supcon_loss(rows, labels, **given)
    pairs = supcon_loss(rows, indices_tuple=listed_pairs(labels, labels), **given)
    torch.testing.assert_close(pairs, by_label)
    tree = torch.stack([labels // 2, labels], dim=1)
    whole = supcon_loss(rows, tree, target=Hierarchy([1, 2]), **given).mean()
    coarse, fine = (supcon_loss(rows, level, **given).mean() for level in tree.T)
    torch.testing.assert_close(whole, coarse + 2 * fine)


def test_reducers_and_the_queue():
    rows, labels, mask = random_rows(8, 3), torch.arange(4) % 2, torch.tensor([True, False, False, True])
    views = rows.view(4, 2, 3)
    anchor_losses = supcon_loss(views, labels, anchors=mask)
    reduced = losses.SupConLossOut(reducer=reducers.ThresholdReducer(low=0))(views, labels, anchors=mask)
    torch.testing.assert_close(reduced, anchor_losses.losses[anchor_losses.valid].mean())
    queue = losses.QueueLoss(losses.SupConLossOut(), embedding_size=3, queue_size=16, dtype=torch.float64)
    queue(views, labels)  # fills the queue
    others = random_rows(8, 3).view(4, 2, 3)
    batch = others.transpose(0, 1).flatten(0, 1)
    memory = torch.cat([batch, queue.queue_embeddings[:8]]), torch.cat([labels.repeat(2), queue.queue_labels[:8]])
    expected = supcon_loss(
        batch, labels.repeat(2), ref_emb=memory[0], ref_labels=memory[1], ref_starts_with_batch=True,
        anchors=mask.repeat(2),
    ).mean()  # fmt: skip
    torch.testing.assert_close(queue(others, labels, anchors=mask), expected)


@pytest.mark.parametrize(
    ("error", "message", "anchors", "views"),
    [
        (TypeError, "`anchors` to be a torch.Tensor, but got list", [True] * 6, None),
        (TypeError, "`anchors` to be a bool mask, but got torch.int64", torch.arange(6), None),
        (ValueError, r"shape \(6,\), one entry for each row, but got \(3,\)", torch.ones(3).bool(), None),
        (ValueError, r"shape \(6,\), one entry for each row, or \(3,\), .* each sample, but got \(2,\)",
         torch.ones(2).bool(), 2),
        (ValueError, r"but got \(2, 3\)", torch.ones(2, 3).bool(), 2),
    ],
)  # fmt: skip
def test_errors(error, message, anchors, views):
    with pytest.raises(error, match=message):
        supcon_loss(torch.randn(6, 3), torch.arange(3).repeat(2), anchors=anchors, num_views=views)


def test_the_oracle_rejects_mistakes():
    """Rows that are no anchors are contrasted."""
    rows, labels, mask = random_rows(8, 3), torch.arange(8) % 2, torch.arange(8) < 5
    expected = supcon_oracle.anchor_losses(rows, labels, anchors=mask.tolist())
    assert_equals_oracle(supcon_loss(rows, labels, anchors=mask), expected, "right")
    left_out = supcon_loss(rows[mask], labels[mask])
    padded = left_out._replace(
        losses=torch.cat([left_out.losses, rows.new_zeros(3)]), valid=torch.cat([left_out.valid, ~mask[5:] & False])
    )
    for wrong in (supcon_loss(rows, labels), padded):
        with pytest.raises(AssertionError):
            assert_equals_oracle(wrong, expected, "wrong")


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_compiles_whole(backend):
    torch.compiler.reset()
    loss = losses.SupConLossOut(backend=backend)

    def step(rows, labels, anchors):
        return loss(rows, labels, anchors=anchors)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    rows, labels, mask = torch.randn(6, 2, 4, requires_grad=True), torch.arange(6) % 3, torch.arange(6) < 4
    results = [torch.autograd.grad(way(rows, labels, mask), rows) for way in (step, compiled)]
    torch.testing.assert_close(*results)
    torch.compiler.reset()
