"""The option `margin`: epsilon-SupInfoNCE. And SINCERE, which `denominator="one_positive"` is."""

import math

import pytest
import torch
from helpers import supcon_oracle
from helpers.supcon_batches import (
    BACKENDS,
    SPEC_LABELS,
    SPEC_ROWS,
    assert_equals_oracle,
    label_kinds,
    listed_pairs,
    loss_and_gradient,
    problem_of,
    random_rows,
)
from torch.autograd import gradcheck, gradgradcheck

from pml_supcon import losses
from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon.backends import refusal
from pml_supcon.functional.supcon.tiled import layout, listed
from pml_supcon.targets import LabelSets

ONE = {"denominator": "one_positive", "temperature": 0.5}


@pytest.fixture(params=[*BACKENDS, "tiled in tiles of 3"])
def backend(request, monkeypatch):
    if request.param == "tiled in tiles of 3":
        monkeypatch.setattr(layout, "TILE", 3)
    return request.param.split()[0]


def test_the_value_of_the_specification(backend):
    loss = losses.SupConLossOut(margin=0.25, backend=backend, **ONE)
    assert loss(SPEC_ROWS, SPEC_LABELS.repeat(2)).item() == pytest.approx(1.595662883, abs=1e-9)


@pytest.mark.parametrize("summation", ["out", "in"])
@pytest.mark.parametrize("margin", [0.25, 30.0])
def test_oracle(backend, summation, margin):
    given = {"summation": summation, "margin": margin, **ONE}
    for kind, samples in label_kinds(5).items():
        rows, labels = random_rows(10, 3), samples.repeat(2)
        for more in ({}, {"positives_cap": 2}, {"contrast_mode": "one"}):
            expected = supcon_oracle.anchor_losses(rows, labels, num_views=2, **given, **more)
            ours = supcon_loss(rows, labels, num_views=2, backend=backend, **given, **more)
            assert_equals_oracle(ours, expected, f"{kind}, {more}")
        references = {"ref_emb": random_rows(7, 3), "ref_labels": torch.arange(7) % 3}
        expected = supcon_oracle.anchor_losses(rows, labels, **references, **given)
        assert_equals_oracle(supcon_loss(rows, labels, backend=backend, **references, **given), expected, kind)
    cold = {**given, "temperature": 0.001}  # logarithms
    expected = supcon_oracle.anchor_losses(rows * 0.1, labels, normalize=False, **cold)
    ours = supcon_loss(rows * 0.1, labels, normalize=False, backend=backend, **cold)
    assert_equals_oracle(ours, expected, "cold")


@pytest.mark.parametrize("way", ["listed", "dense", "reference"])
@pytest.mark.parametrize("summation", ["out", "in"])
def test_listed_pairs(way, summation, monkeypatch):
    """A pair listed as positive and as negative is a negative in its denominator, without the margin."""
    monkeypatch.setattr(listed, "DENSE_SHARE", math.inf if way == "listed" else 0)
    rows, labels = random_rows(6, 3), torch.tensor([0, 0, 1, 0, 1, 2])
    a1, p, a2, n = listed_pairs(labels, labels)
    pairs = a1, p, torch.cat([a2, a1[:2]]), torch.cat([n, p[:2]])
    given = {"summation": summation, "margin": 0.4, **ONE}
    expected = supcon_oracle.anchor_losses(rows, indices_tuple=pairs, **given)
    backend = "reference" if way == "reference" else "tiled"
    assert_equals_oracle(supcon_loss(rows, indices_tuple=pairs, backend=backend, **given), expected, way)


@pytest.mark.parametrize("summation", ["out", "in"])
def test_gradients(backend, summation):
    rows, labels = random_rows(6, 3).requires_grad_(), torch.tensor([0, 0, 1, 0, 1, 2])

    def values(rows):
        return supcon_loss(rows, labels, margin=0.4, summation=summation, backend=backend, **ONE).losses

    assert gradcheck(values, rows)
    if backend == "reference":
        assert gradgradcheck(values, rows)


def test_no_negatives_and_no_margin(backend):
    rows, labels = random_rows(4, 3), torch.zeros(4, dtype=torch.int64)
    alone = supcon_loss(rows, labels, margin=0.25, backend=backend, **ONE)
    torch.testing.assert_close(alone.losses, torch.full((4,), -0.25, dtype=torch.float64))
    none = supcon_loss(SPEC_ROWS, SPEC_LABELS.repeat(2), backend=backend, margin=0, **ONE)
    plain = supcon_loss(SPEC_ROWS, SPEC_LABELS.repeat(2), backend=backend, **ONE)
    assert torch.equal(none.losses, plain.losses)


@pytest.mark.parametrize("backend", BACKENDS)
def test_targets(backend):
    """One-hot label sets are classes, on each backend that reads them."""
    rows, labels = random_rows(8, 3), torch.arange(8) % 3
    sets = torch.nn.functional.one_hot(labels)
    problem = problem_of(rows, sets, target=LabelSets("any"), **ONE)
    if refusal(backend, problem) is not None:
        return
    ours = loss_and_gradient(rows, sets, target=LabelSets("any"), margin=0.25, backend=backend, **ONE)
    torch.testing.assert_close(ours, loss_and_gradient(rows, labels, margin=0.25, backend=backend, **ONE))


@pytest.mark.parametrize("mistake", ["no margin", "margin in the loss only", "margin of the negatives only"])
def test_the_oracle_rejects_mistakes(mistake):
    rows, labels = random_rows(8, 3), torch.arange(8) % 3
    expected = supcon_oracle.anchor_losses(rows, labels, margin=0.4, **ONE)
    wrong = supcon_loss(rows, labels, margin=0.0 if mistake != "margin of the negatives only" else 0.4, **ONE)
    change = {"no margin": 0, "margin in the loss only": -0.4, "margin of the negatives only": 0.4}[mistake]
    with pytest.raises(AssertionError):
        assert_equals_oracle(wrong._replace(losses=wrong.losses + change), expected, mistake)


def test_errors():
    rows, labels = torch.randn(6, 3), torch.arange(6) // 2
    with pytest.raises(ValueError, match=r"`denominator='one_positive'` with margin=0.25, .* but got 'all'"):
        losses.SupConLossOut(margin=0.25)
    with pytest.raises(ValueError, match=r"`margin` to be between 0 and 1000, but got -0.1"):
        supcon_loss(rows, labels, margin=-0.1, denominator="one_positive")
    with pytest.raises(TypeError, match="`margin` to be a number, but got True"):
        supcon_loss(rows, labels, margin=True)
    with pytest.raises(ValueError, match="its kernels have no margin; backends that can: dense, tiled, reference"):
        supcon_loss(rows, labels, margin=0.25, denominator="one_positive", backend="triton")
    loss = losses.SupConLossOut(denominator="one_positive")
    loss.margin = 0.25
    assert loss.options.margin == 0.25


@pytest.mark.parametrize("summation", ["out", "in"])
@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_compiles_whole(backend, summation):
    torch.compiler.reset()

    def step(rows, labels, margin):
        return supcon_loss(rows, labels, margin=margin, summation=summation, backend=backend, **ONE).mean()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for margin in (0.25, 0.5, 0.75):  # a symbol in the graph, from the second value on
        rows, labels = torch.randn(12, 4, requires_grad=True), torch.arange(12) % 3
        results = [torch.autograd.grad(way(rows, labels, margin), rows) for way in (step, compiled)]
        torch.testing.assert_close(*results)
    torch.compiler.reset()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_positive_is_sincere(backend):
    """SINCERE (arXiv 2309.14277): the other positives of an anchor are in no denominator of it."""
    rows, labels, tau = random_rows(9, 4), torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2]), 0.5
    z = torch.nn.functional.normalize(rows, dim=1)
    similarities = (z @ z.T / tau).exp()
    terms = []
    for anchor in range(9):  # one term for each pair of an anchor S and a positive p
        noise = similarities[anchor, labels != labels[anchor]].sum()
        partners = [p for p in range(9) if p != anchor and labels[p] == labels[anchor]]
        pairs = [-(similarities[anchor, p] / (similarities[anchor, p] + noise)).log() for p in partners]
        terms.append(torch.stack(pairs).mean())
    loss = losses.SupConLossOut(temperature=tau, denominator="one_positive", backend=backend)
    torch.testing.assert_close(loss(rows, labels), torch.stack(terms).mean(), rtol=1e-12, atol=0)
