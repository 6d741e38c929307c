"""Invariances of the losses on drawn batches, and label sets of any size."""

import numpy as np
import pytest
import torch
from helpers.supcon_batches import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon.problem import rank_cap

TIGHT = {"rtol": 1e-9, "atol": 1e-10}


@st.composite
def batches(draw):
    """Rows `(V * B, D)` in float64, labels, and options that suit them."""
    samples, views, width = draw(st.integers(1, 9)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    rows = torch.randn(samples * views, width, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        rows[-1] = rows[0]  # duplicates
    labels = torch.randint(0, draw(st.integers(1, samples)), (samples,), generator=generator).repeat(views)
    options = {
        "temperature": draw(st.sampled_from([0.01, 0.1, 0.5, 10.0])),
        "denominator": draw(st.sampled_from(["all", "one_positive", "negatives"])),
        "contrast_mode": draw(st.sampled_from(["all", "one"])),
        "positives_cap": draw(st.sampled_from([None, 0, views])),
        "num_views": views,
        "backend": draw(st.sampled_from(BACKENDS)),
    }
    return rows, labels, options, generator


@settings(max_examples=150, deadline=None)
@given(batches(), st.sampled_from(["out", "in"]))
def test_loss_is_unchanged_by_rotation_and_renaming(batch, summation):
    rows, labels, options, generator = batch
    expected = supcon_loss(rows, labels, summation=summation, **options)
    rotation = torch.linalg.qr(torch.randn(rows.shape[1], rows.shape[1], generator=generator, dtype=torch.float64))[0]
    names = torch.randperm(int(labels.max()) + 1, generator=generator) - 2**60  # one number to a float
    changed = supcon_loss(rows @ rotation, names[labels], summation=summation, **options)
    torch.testing.assert_close(changed, expected, rtol=1e-7, atol=1e-8)


@settings(max_examples=100, deadline=None)
@given(batches(), st.sampled_from(["out", "in"]))
def test_loss_moves_with_its_rows(batch, summation):
    rows, labels, options, generator = batch
    options |= {"positives_cap": None, "contrast_mode": "all", "num_views": None}  # what looks at the order
    order = torch.randperm(len(rows), generator=generator)
    expected = supcon_loss(rows, labels, summation=summation, **options)
    moved = supcon_loss(rows[order], labels[order], summation=summation, **options)
    torch.testing.assert_close(moved.losses, expected.losses[order], **TIGHT)
    assert torch.equal(moved.valid, expected.valid[order])


@settings(max_examples=100, deadline=None)
@given(batches())
def test_in_is_never_above_out(batch):
    rows, labels, options, _ = batch
    out, inside = (supcon_loss(rows, labels, summation=summation, **options) for summation in ("out", "in"))
    assert torch.equal(out.valid, inside.valid)
    assert (inside.losses <= out.losses + 1e-8).all()


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from(["out", "in"]))
def test_backends_agree_on_values_and_gradients(batch, summation):
    rows, labels, options, generator = batch
    upstream = torch.randn(len(rows), generator=generator, dtype=torch.float64)
    found = []
    for backend in BACKENDS:
        leaf = rows.clone().requires_grad_()
        losses, valid = supcon_loss(leaf, labels, summation=summation, **(options | {"backend": backend}))
        (gradient,) = torch.autograd.grad((losses * upstream[: len(losses)]).sum(), leaf)
        assert gradient.isfinite().all()
        found.append((losses.detach(), valid, gradient))
    torch.testing.assert_close(found[0], found[1], rtol=1e-7, atol=1e-7)


def test_large_label_ids_are_told_apart():
    ids = 2**24 + torch.arange(8)  # as float32, pairs of these are one number
    rows = torch.randn(16, 4, dtype=torch.float64)
    for backend in BACKENDS:
        large = supcon_loss(rows, ids.repeat(2), num_views=2, backend=backend)
        torch.testing.assert_close(large, supcon_loss(rows, torch.arange(8).repeat(2), num_views=2, backend=backend))


@pytest.mark.parametrize("offset", [2**24, 2**60])
def test_a_million_references_are_told_apart(offset):
    """Neighbouring ids, that float32 (beyond 2^60 float64 too) takes for one: against sums over each anchor's row."""
    number, temperature = 10**6, 0.3
    ids = torch.randperm(number) // 2  # two references each, but for the anchors of ids beyond
    refs, rows = torch.randn(number, 4, dtype=torch.float64), torch.randn(64, 4, dtype=torch.float64)
    anchors = torch.cat([torch.arange(500_000 - 32, 500_000 + 16), torch.arange(16)])
    losses, valid = supcon_loss(
        rows, anchors + offset, ref_emb=refs, ref_labels=ids + offset, temperature=temperature, backend="tiled"
    )
    z, unit = (x / x.square().sum(dim=1, keepdim=True).sqrt() for x in (rows, refs))
    for i, label in enumerate(anchors):
        s = (unit @ z[i]) / temperature
        positives = ids == label
        assert bool(valid[i]) == bool(positives.any()) == (label < 500_000)
        expected = s.exp().sum().log() - s[positives].mean() if valid[i] else torch.zeros(())
        assert abs(losses[i] - expected) < 1e-10


def test_ranks_of_a_million_labels_are_exact():
    generator = np.random.default_rng(0)
    labels = generator.integers(2**24, 2**24 + 50_000, 10**6) * 2**20
    rank = rank_cap(torch.from_numpy(labels), num_views=1, keep=3, num_anchors=10**6).row_rank.numpy()
    order = np.lexsort((np.arange(10**6), labels))
    starts = np.r_[0, np.flatnonzero(np.diff(labels[order])) + 1]
    expected = np.empty(10**6, dtype=np.int64)
    expected[order] = np.arange(10**6) - np.repeat(starts, np.diff(np.r_[starts, 10**6]))
    assert np.array_equal(rank, expected)
