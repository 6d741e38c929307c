"""Invariances of the losses on drawn batches."""

import torch
from helpers.supcon_batches import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_supcon.functional import supcon_loss

TIGHT = {"rtol": 1e-9, "atol": 1e-10}


@st.composite
def batches(draw):
    """Draw rows `(V * B, D)` in float64, labels, and options that fit them."""
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
    results = []
    for backend in BACKENDS:
        leaf = rows.clone().requires_grad_()
        losses, valid = supcon_loss(leaf, labels, summation=summation, **(options | {"backend": backend}))
        (gradient,) = torch.autograd.grad((losses * upstream[: len(losses)]).sum(), leaf)
        assert gradient.isfinite().all()
        results.append((losses.detach(), valid, gradient))
    torch.testing.assert_close(results[0], results[1], rtol=1e-7, atol=1e-7)
