"""Soft labels on `tiled`: the positives without weights in the tiles, exact also where hardly any weight is shared."""

import pytest
import torch
from helpers.supcon_batches import loss_and_gradient, random_rows

from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon.tiled import bilinear, layout
from pml_supcon.functional.supcon.tiled.bilinear import Bilinear
from pml_supcon.targets import SoftLabels


@pytest.fixture
def taken(monkeypatch):
    """Return a list to which each pass adds True if it takes the bilinear form, and use small tiles and chunks."""
    found, of = [], Bilinear.of
    monkeypatch.setattr(layout, "TILE", 5)
    monkeypatch.setattr(bilinear, "CHUNK", 5)

    def spy(*arguments, **more):
        part = of(*arguments, **more)
        found.append(part is not None)
        return part

    monkeypatch.setattr(Bilinear, "of", spy)
    return found


def structures():
    """Return options by name: rows, first views as anchors, references, and a memory that starts with the batch."""
    labels = torch.rand(6, 3, dtype=torch.float64).repeat(2, 1)
    memory = {"ref_emb": random_rows(17, 4), "ref_labels": torch.cat([labels, torch.rand(5, 3, dtype=torch.float64)])}
    return labels, {
        "rows": {},
        "one": {"contrast_mode": "one", "num_views": 2},
        "references": {name: part[:9] for name, part in memory.items()},
        "memory": {**memory, "ref_starts_with_batch": True},
    }


@pytest.mark.parametrize("structure", ["rows", "one", "references", "memory"])
def test_losses_and_gradients_equal_the_reference(taken, structure):
    labels, options = structures()
    rows = random_rows(12, 4)
    given = {"target": SoftLabels(), "temperature": 0.3, **options[structure]}
    upstream = torch.linspace(-1, 2, 6 if structure == "one" else 12, dtype=torch.float64)
    ours, right = (
        loss_and_gradient(rows, labels, upstream, backend=backend, **given) for backend in ("tiled", "reference")
    )
    torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-10)
    assert taken == [True, True]
    if "ref_emb" in given:

        def of_references(backend):
            ref_emb = given["ref_emb"].detach().requires_grad_()
            losses = supcon_loss(rows, labels, backend=backend, **given | {"ref_emb": ref_emb}).losses
            return torch.autograd.grad(losses, ref_emb, upstream)[0]

        torch.testing.assert_close(of_references("tiled"), of_references("reference"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_anchor_that_shares_with_itself_alone_is_invalid(taken, dtype):
    labels = torch.rand(20, 6, dtype=dtype)
    labels[:, 4:] = 0
    labels[7] = torch.tensor([0, 0, 0, 0, 0.1, 0.7], dtype=dtype)
    rows = random_rows(20, 4, dtype=dtype)
    losses, gradient = loss_and_gradient(rows, labels, target=SoftLabels(), backend="tiled")
    right, right_gradient = loss_and_gradient(rows.double(), labels.double(), target=SoftLabels(), backend="reference")
    assert losses[7] == right[7] == 0
    assert not supcon_loss(rows, labels, target=SoftLabels(), backend="tiled").valid[7]
    torch.testing.assert_close(losses.double(), right, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), right_gradient, rtol=1e-5, atol=1e-6)
    assert all(taken)


@pytest.mark.parametrize("share", [1e-3, 2e-6, 2e-9])
def test_an_anchor_with_a_tiny_total_is_accurate(taken, share):
    """Beside the anchor's own share float64 keeps few digits of the smallest others, and float32 none."""
    labels = torch.rand(20, 6)
    labels[:, 5] = share * (0.5 + 0.5 * torch.rand(20))
    labels[7] = torch.tensor([0, 0, 0, 0, 0, 0.9])
    rows = random_rows(20, 4, dtype=torch.float32)
    losses, gradient = loss_and_gradient(rows, labels, target=SoftLabels(), backend="tiled")
    right, right_gradient = loss_and_gradient(rows.double(), labels.double(), target=SoftLabels(), backend="reference")
    assert right[7] > 0
    torch.testing.assert_close(losses.double(), right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), right_gradient, rtol=1e-5, atol=1e-6)
    assert set(taken) == {share > 1e-8}
