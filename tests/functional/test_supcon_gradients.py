"""The gradients of `supcon_loss`: finite differences, the paper's formula, any upstream gradient, second order."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers.supcon_batches import BACKENDS, OPTION_NAMES, OPTIONS, assert_gradients_equal, random_rows
from torch.autograd import gradcheck, gradgradcheck

from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon import upper_triangle
from pml_supcon.functional.supcon.tiled import layout, listed

LABELS = {"mixed": torch.tensor([0, 0, 1, 2]), "one class": torch.tensor([3, 3, 3, 3])}


def losses_of(labels, **options):
    return lambda rows: supcon_loss(rows, labels, temperature=0.5, **options).losses


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("contrast_mode", ["all", "one"])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_finite_differences(monkeypatch, backend, summation, denominator, contrast_mode):
    monkeypatch.setattr(layout, "TILE", 3)
    monkeypatch.setattr(upper_triangle, "STRIP", 3)
    given = {"num_views": 2, "summation": summation, "denominator": denominator, "contrast_mode": contrast_mode}
    for samples, cap, normalize in (([0, 0, 1], None, True), ([5, 5, 5], 2, True), ([0, 1, 0], None, False)):
        rows = random_rows(6, 2).requires_grad_()
        options = {"positives_cap": cap, "normalize": normalize, "backend": backend, **given}
        assert gradcheck(losses_of(torch.tensor(samples).repeat(2), **options), (rows,))
    rows = random_rows(6, 2).requires_grad_()
    assert gradcheck(losses_of(None, scale_by_temperature=True, backend=backend, **given), (rows,))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("contrast_mode", ["all", "one"])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_finite_differences_of_anchors_and_references(monkeypatch, backend, summation, denominator, contrast_mode):
    monkeypatch.setattr(layout, "TILE", 3)
    given = {"summation": summation, "denominator": denominator, "contrast_mode": contrast_mode, "backend": backend}
    rows, refs = random_rows(6, 2).requires_grad_(), random_rows(5, 2).requires_grad_()
    for ref_labels in (torch.tensor([0, 2, 2, 5, 0]), torch.tensor([0, 0, 0, 0, 0])):

        def losses(rows, refs, ref_labels=ref_labels):
            labels = torch.tensor([0, 2, 1]).repeat(2)
            references = {"ref_emb": refs, "ref_labels": ref_labels}
            return supcon_loss(rows, labels, num_views=2, temperature=0.5, **references, **given).losses

        assert gradcheck(losses, (rows, refs))


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_the_reference_is_differentiable_twice(kind, summation, denominator):
    rows = random_rows(4, 2).requires_grad_()
    options = {"summation": summation, "denominator": denominator, "backend": "reference"}
    assert gradgradcheck(losses_of(LABELS[kind], **options), (rows,))


PAIRS = tuple(map(torch.tensor, ([0], [1], [0], [2])))
REFERENCES = {"ref_emb": random_rows(3, 2), "ref_labels": torch.tensor([0, 1, 0])}


@pytest.mark.parametrize("given", [{}, {"indices_tuple": PAIRS}, REFERENCES], ids=["labels", "pairs", "references"])
@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_a_second_derivative_raises(backend, given, monkeypatch):
    monkeypatch.setattr(listed, "DENSE_SHARE", float("inf"))
    rows = random_rows(4, 2).requires_grad_()
    loss = supcon_loss(rows, LABELS["mixed"], backend=backend, **given).mean()
    (gradient,) = torch.autograd.grad(loss, rows, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivative needs backend='reference'"):
        (loss + gradient.square().sum()).backward()  # a gradient penalty: its derivative must not be 0


@pytest.mark.parametrize("given", [{}, {"indices_tuple": PAIRS}], ids=["labels", "pairs"])
def test_forward_mode_and_functional_derivatives_need_the_reference(given):
    """The operators have only a backward pass: a tangent must not be dropped silently."""
    rows, along = random_rows(6, 3), random_rows(6, 3)

    def loss(rows, backend="tiled"):
        return supcon_loss(rows, torch.arange(6) // 2, backend=backend, **given).mean()

    leaf = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    for backend in ("reference", "auto"):
        way = partial(loss, backend=backend)
        _, tangent = torch.func.jvp(way, (rows,), (along,))
        torch.testing.assert_close(tangent, (gradient * along).sum())
        torch.testing.assert_close(torch.func.grad(way)(rows), gradient)
        torch.testing.assert_close(torch.func.jacrev(way)(rows), gradient)
    backends = r"; backends that can: reference$"
    with pytest.raises(ValueError, match=f"it has no forward-mode derivative.*{backends}"):
        torch.func.jvp(loss, (rows,), (along,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(rows, along)
        for refs in ({}, {"ref_emb": dual, "ref_labels": torch.arange(6) // 2}):
            with pytest.raises(ValueError, match=f"it has no forward-mode derivative.*{backends}"):
                supcon_loss(rows if refs else dual, torch.arange(6) // 2, backend="tiled", **refs, **given)
    for transform in (torch.func.grad, torch.func.jacrev):
        with pytest.raises(ValueError, match=f"torch.func cannot differentiate it{backends}"):
            transform(loss)(rows)


@pytest.mark.parametrize("summation", ["out", "in"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_the_paper(backend, summation):
    """`G_ij = w_i (P_ij - X_ij) / tau`, `dL/dz = (G + G^T) z`, then through the normalisation."""
    tau, rows, labels = 0.4, random_rows(9, 3).requires_grad_(), torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2])
    supcon_loss(rows, labels, temperature=tau, summation=summation, backend=backend).mean().backward()
    with torch.no_grad():
        z = F.normalize(rows, dim=1)
        e = (z @ z.T / tau).exp().fill_diagonal_(0)
        positives = (labels[:, None] == labels).double().fill_diagonal_(0)
        x = {"out": positives, "in": positives * e}[summation]
        g = (e / e.sum(dim=1, keepdim=True) - x / x.sum(dim=1, keepdim=True)) / tau / len(rows)
        to_unit_rows = (g + g.T) @ z
        through = to_unit_rows - (to_unit_rows * z).sum(dim=1, keepdim=True) * z
        expected = through / rows.norm(dim=1, keepdim=True)
    assert_gradients_equal(rows.grad, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("contrast_mode", ["all", "one"])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_backends_agree_under_any_upstream_gradient(monkeypatch, summation, denominator, contrast_mode):
    monkeypatch.setattr(layout, "TILE", 7)
    rows, labels = random_rows(40, 5).requires_grad_(), torch.randint(0, 5, (20,)).repeat(2)
    options = {"num_views": 2, "positives_cap": 4, "contrast_mode": contrast_mode}
    terms = [
        supcon_loss(rows, labels, summation=summation, denominator=denominator, backend=backend, **options)
        for backend in BACKENDS
    ]
    upstream = torch.randn_like(terms[0].losses)
    upstream[3] = 0
    *found, right = (torch.autograd.grad(t.losses, rows, upstream, retain_graph=True)[0] for t in terms)
    for gradient, term in zip(found, terms, strict=False):
        assert_gradients_equal(gradient, right)
        again = torch.autograd.grad(term.losses, rows, upstream)[0]  # a second pass over a retained graph
        assert torch.equal(gradient, again)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("denominator", ["all", "one_positive", "negatives"])
@pytest.mark.parametrize("rows", [torch.randn(4, 3), torch.zeros(4, 3), torch.zeros(0, 3)])
def test_no_anchor_left_gives_zero_loss_and_zero_gradient(rows, denominator, backend):
    rows = rows.clone().requires_grad_()
    terms = supcon_loss(rows, torch.arange(len(rows)), denominator=denominator, backend=backend)
    assert terms.losses.shape == terms.valid.shape == (len(rows),)
    assert not terms.valid.any()
    assert terms.mean().item() == 0
    terms.mean().backward()
    assert torch.equal(rows.grad, torch.zeros_like(rows))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_no_reference_rows(backend, summation, denominator):
    rows, refs = torch.randn(3, 2).requires_grad_(), torch.zeros(0, 2).requires_grad_()
    none = torch.zeros(0, dtype=torch.int64)
    options = {"summation": summation, "denominator": denominator, "backend": backend}
    loss = supcon_loss(rows, torch.arange(3), ref_emb=refs, ref_labels=none, **options).mean()
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(rows.grad, torch.zeros(3, 2))
    assert refs.grad is None or refs.grad.shape == (0, 2)
