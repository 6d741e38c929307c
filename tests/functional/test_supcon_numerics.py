"""`supcon_loss` on hard numbers, and on every dtype and layout."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from helpers.supcon_batches import (
    BACKENDS,
    OPTION_NAMES,
    OPTIONS,
    TOLERANCE,
    gradient_error,
    loss_and_gradient,
    loss_error,
    random_rows,
)

from pml_supcon.functional import supcon_loss


def assert_close_in_float32(rows, labels, *, rtol, **options):
    """Compare float32 with the definition in float64: the loss, and the gradient relative to its largest entry."""
    wide = loss_and_gradient(rows.double(), labels, **{**options, "backend": "reference"})
    losses, gradient = loss_and_gradient(rows, labels, **options)
    torch.testing.assert_close(losses.double(), wide[0], rtol=rtol, atol=rtol)
    torch.testing.assert_close(gradient.double(), wide[1], rtol=0, atol=rtol * wide[1].abs().max().item())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [0.005, 0.016, 0.018, 1.0, 10.0])  # from below to above tiled's bound
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_temperatures_in_float32(backend, summation, denominator, temperature):
    options = {"summation": summation, "denominator": denominator, "temperature": temperature, "backend": backend}
    rows = random_rows(48, 3, dtype=torch.float32)
    assert_close_in_float32(rows, torch.randint(0, 4, (48,)), rtol=1e-3, **options)
    # opposite rows of one class and close rows of different classes: the hardest pairs
    directions = torch.tensor([0.0, 3.14159, 0.01, 0.1, 3.0, 1.5])
    rows = torch.stack([directions.cos(), directions.sin()], dim=1)
    assert_close_in_float32(rows, torch.tensor([0, 0, 1, 1, 1, 2]), rtol=1e-3, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_large_dot_products_in_float32(backend, summation, denominator):
    options = {"summation": summation, "denominator": denominator, "normalize": False, "backend": backend}
    rows, labels = random_rows(30, 4, dtype=torch.float32, scale=20), torch.randint(0, 4, (30,))
    assert supcon_loss(rows, labels, **options).losses.max() > 1000
    assert_close_in_float32(rows, labels, rtol=5e-3, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_equal_rows_and_zero_rows(backend, summation, denominator):
    options = {"summation": summation, "denominator": denominator, "backend": backend, "temperature": 0.01}
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    for rows in (torch.ones(6, 3), torch.zeros(6, 3), torch.eye(6, 3)):
        losses, gradient = loss_and_gradient(rows, labels, **options)
        assert losses.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("size", [1e-25, 1e-8, 65536.0])
@pytest.mark.parametrize("temperature", [0.0168, 0.1])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_any_size_of_upstream_gradient(summation, denominator, temperature, size):
    """Upstream gradients of a mean over many anchors, or of a gradient scaler, times an inverse sum of exp(60)."""
    options = {"summation": summation, "denominator": denominator, "temperature": temperature}
    rows, labels = random_rows(12, 3, dtype=torch.float32), torch.randint(0, 4, (12,))
    upstream = torch.full((12,), size)
    _, right = loss_and_gradient(rows.double(), labels, upstream.double(), backend="reference", **options)
    _, gradient = loss_and_gradient(rows, labels, upstream, backend="tiled", **options)
    assert right.abs().max() > size / 1000
    torch.testing.assert_close(gradient.double(), right, rtol=0, atol=1e-4 * right.abs().max().item())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_upstream_gradient_that_is_not_finite_stays_in_its_row(value):
    rows, refs, labels = random_rows(4, 3).requires_grad_(), random_rows(6, 3), torch.tensor([0, 0, 1, 1])
    losses = supcon_loss(rows, labels, ref_emb=refs, ref_labels=torch.arange(6) // 3, backend="tiled").losses
    upstream = torch.tensor([1.0, 1.0, value, 0.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(losses, rows, upstream, retain_graph=True)
    assert gradient.isfinite().all(dim=1).tolist() == [True, True, False, True]
    (expected,) = torch.autograd.grad(losses, rows, upstream.nan_to_num(0, posinf=0))
    torch.testing.assert_close(gradient[:2], expected[:2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_a_nan_row_gives_a_nan_loss(backend, summation, denominator):
    for labels in ([0, 0, 1, 1], [0, 1, 1, 1]):  # a positive of another row, only a negative
        rows = torch.randn(4, 3)
        rows[0, 0] = torch.nan
        options = {"summation": summation, "denominator": denominator, "backend": backend}
        assert supcon_loss(rows, torch.tensor(labels), **options).mean().isnan()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_every_dtype_is_within_the_table_of_tolerances(backend, summation, denominator, dtype):
    options = {"summation": summation, "denominator": denominator}
    labels, upstream = torch.randint(0, 4, (40,)), torch.randn(40)
    for rows in (random_rows(40, 24, dtype=torch.float32).to(dtype), torch.randn(40, 3).to(dtype)):
        losses, gradient = loss_and_gradient(rows, labels, upstream, backend=backend, **options)
        assert losses.dtype == torch.float32
        assert gradient.dtype == dtype
        right = loss_and_gradient(rows.double(), labels, upstream.double(), backend="reference", **options)
        assert loss_error(losses, right[0]) <= TOLERANCE[dtype]["losses"]
        assert gradient_error(gradient, right[1], upstream) <= TOLERANCE[dtype]["gradients"]


def test_the_table_of_the_page_shows_the_tolerances():
    page = (Path(__file__).parents[2] / "docs" / "functional" / "backends.md").read_text()
    for dtype, of in TOLERANCE.items():
        name = str(dtype).removeprefix("torch.")
        assert re.search(rf"^\| {name} \| {of['losses']:g} / {of['gradients']:g} \|", page, re.MULTILINE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_autocast_changes_nothing(backend, summation, denominator):
    options = {"summation": summation, "denominator": denominator, "backend": backend}
    rows, labels = random_rows(20, 16, dtype=torch.float32).requires_grad_(), torch.randint(0, 4, (20,))
    expected = supcon_loss(rows, labels, **options).mean()
    (gradient,) = torch.autograd.grad(expected, rows)
    with torch.autocast("cpu", torch.bfloat16):
        loss = supcon_loss(rows, labels, **options).mean()
        projected = torch.nn.functional.linear(rows, torch.eye(16))
        from_half = supcon_loss(projected, labels, **options).mean()
    assert torch.equal(loss, expected)
    assert torch.equal(torch.autograd.grad(loss, rows)[0], gradient)
    assert projected.dtype == torch.bfloat16
    assert from_half.dtype == torch.float32
    torch.testing.assert_close(from_half, supcon_loss(projected.float(), labels, **options).mean())


EVERY_PAIR = (torch.arange(20).repeat_interleave(20), torch.arange(20).repeat(20)) * 2


@pytest.mark.parametrize("pairs", [None, tuple(half[:20] for half in EVERY_PAIR), EVERY_PAIR],
                         ids=["labels", "few pairs", "every pair"])  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_a_backward_pass_within_autocast(backend, summation, denominator, pairs):
    """PyTorch's products lose precision there."""
    options = {"summation": summation, "denominator": denominator, "backend": backend, "indices_tuple": pairs}
    rows, labels = random_rows(20, 16, dtype=torch.float32), torch.randint(0, 4, (20,))
    expected = loss_and_gradient(rows, labels, **options)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss_and_gradient(rows, labels, **options), expected)


def test_a_second_derivative_within_autocast():
    rows, labels = random_rows(20, 16, dtype=torch.float32).requires_grad_(), torch.randint(0, 4, (20,))
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = supcon_loss(rows, labels, backend="reference").mean()
            (gradient,) = torch.autograd.grad(loss, rows, create_graph=True)
            results.append(torch.autograd.grad(gradient.square().sum(), rows)[0])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_in_memory_does_not_matter(backend):
    rows, labels = random_rows(12, 4), torch.randint(0, 3, (12,))
    expected = loss_and_gradient(rows, labels, backend=backend)
    strided = torch.stack([rows, rows + 1], dim=2)[..., 0]
    for other in (rows.T.contiguous().T, strided):
        assert not other.is_contiguous()
        spread = torch.stack([labels, labels], dim=1)[:, 0]
        torch.testing.assert_close(loss_and_gradient(other, spread, backend=backend), expected)
        refs = {"ref_labels": spread, "backend": backend}
        with_refs = loss_and_gradient(rows, labels, ref_emb=rows.flip(0), **refs)
        spread_refs = torch.stack([rows.flip(0), rows], dim=2)[..., 0]
        assert not spread_refs.is_contiguous()
        torch.testing.assert_close(loss_and_gradient(other, labels, ref_emb=spread_refs, **refs), with_refs)
    upstream = torch.ones((), dtype=torch.float64).expand(12)  # the upstream gradient of `sum()`
    expected = loss_and_gradient(rows, labels, torch.ones(12, dtype=torch.float64), backend=backend)
    torch.testing.assert_close(loss_and_gradient(rows, labels, upstream, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_input_is_left_as_it_was(backend):
    rows, labels = random_rows(12, 4), torch.randint(0, 3, (12,))
    kept, kept_labels = rows.clone(), labels.clone()
    loss_and_gradient(rows, labels, backend=backend, temperature=0.001)
    loss_and_gradient(rows, labels, backend=backend, normalize=False)
    assert torch.equal(rows, kept)
    assert torch.equal(labels, kept_labels)


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_of_any_size(backend):
    rows, small = random_rows(12, 4), torch.tensor([0, 1, 2, 3, 0, 1]).repeat(2)
    for values in ([0, -1, -7, 9], [2**62, 2**62 + 1, -(2**63), 2**63 - 1]):  # some of them equal in float64
        labels = torch.tensor(values)[small]
        cap, refs = {"num_views": 2, "positives_cap": 2, "backend": backend}, {"ref_emb": rows, "backend": backend}
        torch.testing.assert_close(supcon_loss(rows, labels, **cap), supcon_loss(rows, small, **cap))
        expected = supcon_loss(rows, small, ref_labels=small.flip(0), **refs)
        torch.testing.assert_close(supcon_loss(rows, labels, ref_labels=labels.flip(0), **refs), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_and_ref_labels_of_different_dtypes(backend):
    rows, labels, ref_labels = random_rows(6, 3), torch.arange(6) // 2, torch.arange(6) // 3
    expected = supcon_loss(rows, labels, ref_emb=rows, ref_labels=ref_labels, backend=backend)
    dtypes = [getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]
    for one, other in itertools.product(dtypes, dtypes):
        given = {"ref_emb": rows, "ref_labels": ref_labels.to(other)}
        ours = supcon_loss(rows, labels.to(one), backend=backend, **given)
        assert torch.equal(ours.losses, expected.losses), f"{one}, {other}"
        assert torch.equal(ours.valid, expected.valid), f"{one}, {other}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_uint64_ids_beside_signed_ones(backend):
    rows, high = random_rows(2, 3), torch.tensor([-1, 5]).to(torch.uint64)  # 2^64 - 1, as int64 -1
    for labels, ref_labels in ((high, torch.tensor([-1, 5])), (torch.tensor([-1, 5], dtype=torch.int8), high)):
        with pytest.raises(ValueError, match=r"but got uint64 labels from 2\^63 on beside negative ones"):
            supcon_loss(rows, labels, ref_emb=rows, ref_labels=ref_labels, backend=backend)
    for beside in (torch.tensor([9, 5]), torch.tensor([9, 5], dtype=torch.uint8), high):
        ours = supcon_loss(rows, high, ref_emb=rows, ref_labels=beside, backend=backend)
        assert ours.valid.tolist() == [beside is high, True]
