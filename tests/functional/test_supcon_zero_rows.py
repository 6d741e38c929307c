"""Rows without a direction: a blank image, or a layer of dead units. Their loss is right and their gradient is 0."""

import pytest
import torch
from helpers.supcon_batches import BACKENDS, OPTION_NAMES, OPTIONS
from pytorch_metric_learning.losses import SupConLoss

from pml_supcon.functional import supcon_loss
from pml_supcon.losses import SupConLossOut


def batch(dtype=torch.float32):
    rows = torch.randn(12, 4, dtype=torch.float64)
    rows[3], rows[7] = 0, 1e-13
    return rows.to(dtype).requires_grad_(), torch.arange(12) % 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_gradient_of_a_zero_row_is_zero(backend, summation, denominator, dtype):
    rows, labels = batch(dtype)
    result = supcon_loss(rows, labels, backend=backend, summation=summation, denominator=denominator)
    result.losses.sum().backward()
    assert result.losses.isfinite().all()
    assert rows.grad[[3, 7]].eq(0).all()
    assert 0 < rows.grad.abs().max() < 1000
    others = [row for row in range(12) if row not in (3, 7)]
    assert rows.grad[others].ne(0).any(1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_references_may_be_zero_rows(backend):
    rows, labels = batch()
    references, ref_labels = batch()
    supcon_loss(rows, labels, ref_emb=references, ref_labels=ref_labels, backend=backend).losses.sum().backward()
    assert references.grad[3].eq(0).all()
    assert references.grad.abs().max() < 1000


def test_the_value_is_that_of_pml_whose_gradient_explodes():
    rows, labels = batch()
    with torch.no_grad():
        rows[7] = 0
    ours = SupConLossOut()(rows, labels)
    ours.backward()
    theirs = rows.detach().clone().requires_grad_()
    value = SupConLoss()(theirs, labels)
    value.backward()
    torch.testing.assert_close(ours, value, rtol=1e-5, atol=0)
    assert theirs.grad.abs().max() > 1e9
    others = [row for row in range(12) if row not in (3, 7)]
    torch.testing.assert_close(rows.grad[others], theirs.grad[others], rtol=1e-4, atol=1e-5)


def test_a_blank_image_does_not_move_the_weights():
    """One step of SGD with a blank image in the batch, from a head whose bias is 0."""
    head = torch.nn.Linear(6, 4, bias=True)
    torch.nn.init.zeros_(head.bias)
    features, labels = torch.randn(8, 6), torch.arange(8) % 2
    features[0] = 0
    SupConLossOut()(head(features), labels).backward()
    assert head.bias.grad.abs().max() < 100
