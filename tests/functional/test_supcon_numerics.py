"""`supcon_loss` on hard numbers, and on every dtype and layout."""

import pytest
import torch
from supcon_batches import BACKENDS, OPTION_NAMES, OPTIONS, loss_and_gradient, random_rows

from pml_supcon.functional import supcon_loss


def assert_close_in_float32(rows, labels, *, rtol, **options):
    """float32 against the definition in float64, for the loss and for the gradient relative to its largest entry."""
    wide = loss_and_gradient(rows.double(), labels, **{**options, "backend": "reference"})
    losses, gradient = loss_and_gradient(rows, labels, **options)
    torch.testing.assert_close(losses.double(), wide[0], rtol=rtol, atol=rtol)
    torch.testing.assert_close(gradient.double(), wide[1], rtol=0, atol=rtol * wide[1].abs().max().item())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [0.005, 0.016, 0.018, 1.0])  # below and above the tiled backend's bound
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_low_temperatures_in_float32(backend, summation, denominator, temperature):
    options = {"summation": summation, "denominator": denominator, "temperature": temperature, "backend": backend}
    rows = random_rows(48, 3, dtype=torch.float32)
    assert_close_in_float32(rows, torch.randint(0, 4, (48,)), rtol=1e-3, **options)
    # opposite rows of one class and close rows of different classes: the hardest pairs there can be
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_a_row_that_is_nan_shows(backend, summation, denominator):
    for labels in ([0, 0, 1, 1], [0, 1, 1, 1]):  # a positive of another row, a negative alone
        rows = torch.randn(4, 3)
        rows[0, 0] = torch.nan
        options = {"summation": summation, "denominator": denominator, "backend": backend}
        assert supcon_loss(rows, torch.tensor(labels), **options).mean().isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_half_precision_input(backend, summation, denominator, dtype):
    options = {"summation": summation, "denominator": denominator, "backend": backend}
    rows, labels = random_rows(20, 8, dtype=torch.float32).to(dtype), torch.randint(0, 4, (20,))
    losses, gradient = loss_and_gradient(rows, labels, **options)
    assert losses.dtype == torch.float32
    assert gradient.dtype == dtype
    expected = loss_and_gradient(rows.float(), labels, **options)
    torch.testing.assert_close(losses, expected[0])
    torch.testing.assert_close(gradient, expected[1].to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loss_has_the_dtype_of_wide_input(backend, dtype):
    losses, gradient = loss_and_gradient(torch.randn(6, 3, dtype=dtype), torch.arange(6) // 2, backend=backend)
    assert losses.dtype == gradient.dtype == dtype


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


@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_a_backward_pass_within_autocast(summation, denominator):
    """PyTorch's own operations, and so the reference, lose precision there; the tiled backend need not."""
    options = {"summation": summation, "denominator": denominator, "backend": "tiled"}
    rows, labels = random_rows(20, 16, dtype=torch.float32), torch.randint(0, 4, (20,))
    expected = loss_and_gradient(rows, labels, **options)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss_and_gradient(rows, labels, **options), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_in_memory_does_not_matter(backend):
    rows, labels = random_rows(12, 4), torch.randint(0, 3, (12,))
    expected = loss_and_gradient(rows, labels, backend=backend)
    strided = torch.stack([rows, rows + 1], dim=2)[..., 0]
    for other in (rows.T.contiguous().T, strided):
        assert not other.is_contiguous()
        spread = torch.stack([labels, labels], dim=1)[:, 0]
        torch.testing.assert_close(loss_and_gradient(other, spread, backend=backend), expected)
    upstream = torch.ones((), dtype=torch.float64).expand(12)  # as `sum()` sends it
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


@pytest.mark.parametrize("cap", [None, 2])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
)
def test_labels_of_every_integer_dtype(backend, dtype, cap):
    rows, labels = random_rows(12, 4), torch.tensor([3, 0, 127, 3, 3, 0]).repeat(2)
    options = {"num_views": 2, "positives_cap": cap, "backend": backend}
    expected = supcon_loss(rows, labels, **options).losses
    assert torch.equal(supcon_loss(rows, labels.to(dtype), **options).losses, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_of_any_size(backend):
    rows, small = random_rows(12, 4), torch.tensor([0, 1, 2, 3, 0, 1]).repeat(2)
    options = {"num_views": 2, "positives_cap": 2, "backend": backend}
    for values in ([0, -1, -7, 9], [2**62, 2**62 + 1, -(2**63), 2**63 - 1]):  # some that no float64 tells apart
        labels = torch.tensor(values)[small]
        assert torch.equal(supcon_loss(rows, labels, **options).valid, supcon_loss(rows, small, **options).valid)
        torch.testing.assert_close(
            supcon_loss(rows, labels, **options).losses, supcon_loss(rows, small, **options).losses
        )
    # labels of different dtypes for anchors and references
    refs = {"ref_emb": rows, "ref_labels": small}
    expected = supcon_loss(rows, small, backend=backend, **refs).losses
    torch.testing.assert_close(supcon_loss(rows, small.to(torch.int8), backend=backend, **refs).losses, expected)
