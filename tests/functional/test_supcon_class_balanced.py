"""The option `class_balanced`: each class counts once in a denominator (Balanced Contrastive Learning)."""

import pytest
import torch
from helpers import supcon_oracle
from helpers.supcon_batches import (
    BACKENDS,
    SPEC_LABELS,
    SPEC_ROWS,
    SPEC_TEMPERATURE,
    assert_equals_oracle,
    assert_gradients_equal,
    label_kinds,
    random_rows,
)
from torch.autograd import gradcheck, gradgradcheck

from pml_supcon import losses
from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon.tiled import layout
from pml_supcon.targets import LabelSets

BALANCED = {"class_balanced": True, "temperature": 0.5}
SUMMATIONS = pytest.mark.parametrize("summation", ["out", "in"])


@pytest.fixture(params=[*BACKENDS, "tiled in tiles of 3"])
def backend(request, monkeypatch):
    if request.param == "tiled in tiles of 3":
        monkeypatch.setattr(layout, "TILE", 3)
    return request.param.split()[0]


def test_the_value_of_the_specification(backend):
    loss = losses.SupConLossOut(SPEC_TEMPERATURE, class_balanced=True, backend=backend)
    assert loss(SPEC_ROWS, SPEC_LABELS.repeat(2)).item() == pytest.approx(1.179409390, abs=1e-9)


@SUMMATIONS
@pytest.mark.parametrize("temperature", [0.5, 0.001])  # 0.001 needs logarithms
def test_oracle(backend, summation, temperature):
    given = {"summation": summation, **BALANCED, "temperature": temperature}
    for kind, samples in label_kinds(6).items():
        # at 0.001 similarities within the range of the oracle's plain exponentials
        rows, labels = random_rows(12, 3) * (0.5 if temperature == 0.5 else 0.2), samples.repeat(2)
        given["normalize"] = temperature == 0.5
        for more in ({}, {"positives_cap": 2}, {"positives_cap": 0}, {"contrast_mode": "one"}):
            expected = supcon_oracle.anchor_losses(rows, labels, num_views=2, **given, **more)
            ours = supcon_loss(rows, labels, num_views=2, backend=backend, **given, **more)
            assert_equals_oracle(ours, expected, f"{kind}, {more}")
        references = {"ref_emb": random_rows(7, 3) * 0.2, "ref_labels": torch.tensor([0, 1, 1, 1, 4, 4, 0])}
        expected = supcon_oracle.anchor_losses(rows, labels, **references, **given)
        assert_equals_oracle(supcon_loss(rows, labels, backend=backend, **references, **given), expected, kind)


@SUMMATIONS
@pytest.mark.parametrize("temperature", [0.5, 0.001])
@pytest.mark.parametrize("more", [{}, {"contrast_mode": "one"}, {"positives_cap": 2}])
def test_gradients(backend, summation, temperature, more):
    rows, labels = random_rows(8, 3), torch.tensor([0, 0, 1, 0]).repeat(2)
    rows = (rows if temperature == 0.5 else rows * 0.05).requires_grad_()
    given = {"temperature": temperature, "normalize": temperature == 0.5, "summation": summation, "num_views": 2}

    def values(rows):
        return supcon_loss(rows, labels, class_balanced=True, backend=backend, **given, **more).losses

    assert gradcheck(values, rows)
    if backend == "reference" and temperature == 0.5 and not more:
        assert gradgradcheck(values, rows)


@SUMMATIONS
def test_backends_agree_over_references_that_start_with_the_batch(backend, summation):
    rows, labels = random_rows(9, 3).requires_grad_(), torch.arange(9) % 3
    memory, memory_labels = torch.cat([rows, random_rows(8, 3)]), torch.cat([labels, torch.arange(8) % 5])
    given = {"ref_emb": memory, "ref_labels": memory_labels, "ref_starts_with_batch": True, "summation": summation}
    ours, right = (supcon_loss(rows, labels, backend=which, **given, **BALANCED) for which in (backend, "reference"))
    torch.testing.assert_close(ours, right, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(terms.mean(), rows, retain_graph=True)[0] for terms in (ours, right)]
    assert_gradients_equal(*gradients)


def test_classes_of_one_size_shift_the_denominator_only(backend):
    """With `n` rows of each class, an anchor's own less one, the weights are 1 / n and 1 / (n - 1)."""
    rows, labels = random_rows(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    balanced = supcon_loss(rows, labels, backend=backend, **BALANCED).losses
    s = torch.nn.functional.normalize(rows, dim=1)
    e = (s @ s.T / 0.5).exp()
    partner = torch.arange(6).roll(3)
    own = e[torch.arange(6), partner]
    expected = (own + (e.sum(dim=1) - e.diagonal() - own) / 2).log() - own.log()
    torch.testing.assert_close(balanced, expected)


@pytest.mark.parametrize("mistake", [{"class_balanced": False}, {"positives_cap": 0, "num_views": 1}])
def test_the_oracle_rejects_mistakes(mistake):
    rows, labels = random_rows(8, 3), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    expected = supcon_oracle.anchor_losses(rows, labels, **BALANCED)
    assert_equals_oracle(supcon_loss(rows, labels, **BALANCED), expected, "right")
    with pytest.raises(AssertionError):
        assert_equals_oracle(supcon_loss(rows, labels, **{**BALANCED, **mistake}), expected, "wrong")


def test_errors():
    rows, labels = torch.randn(6, 3), torch.arange(6) // 2
    with pytest.raises(ValueError, match=r"`denominator='all'` with `class_balanced`, .* but got 'negatives'"):
        losses.SupConLossOut(class_balanced=True, denominator="negatives")
    with pytest.raises(ValueError, match=r"no `target` with `class_balanced`, which counts .* class labels"):
        losses.SupConLossOut(class_balanced=True, target=LabelSets())
    with pytest.raises(TypeError, match="`class_balanced` to be True or False, but got 1"):
        supcon_loss(rows, labels, class_balanced=1)
    pairs = (torch.tensor([0]), torch.tensor([1])) * 2
    with pytest.raises(ValueError, match="no `indices_tuple` with `class_balanced`: listed pairs have no classes"):
        supcon_loss(rows, labels, indices_tuple=pairs, class_balanced=True)
    with pytest.raises(ValueError, match="do not balance classes; backends that can: dense, tiled, reference"):
        supcon_loss(rows, labels, class_balanced=True, backend="triton")


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_compiles_whole(backend):
    torch.compiler.reset()

    def step(rows, labels):
        return supcon_loss(rows, labels, backend=backend, **BALANCED).mean()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for number in (12, 20):
        rows, labels = torch.randn(number, 4, requires_grad=True), torch.arange(number) % 3
        results = [torch.autograd.grad(way(rows, labels), rows) for way in (step, compiled)]
        torch.testing.assert_close(*results)
    torch.compiler.reset()
