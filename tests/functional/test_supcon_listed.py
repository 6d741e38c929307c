"""Listed pairs without the matrix: gradients, numerics and memory; the oracle test is in `test_supcon`."""

import pytest
import torch
from helpers.supcon_batches import OPTION_NAMES, OPTIONS, random_rows
from pytorch_metric_learning import miners

from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon import reference
from pml_supcon.functional.supcon.tiled import listed


@pytest.fixture
def always_listed(monkeypatch):
    """Even lists that are long beside the matrix are read pair by pair, in chunks of few."""
    monkeypatch.setattr(listed, "DENSE_SHARE", float("inf"))
    monkeypatch.setattr(listed, "CHUNK", 5)


def random_pairs(number, rows, others):
    """Some are listed as positive and as negative."""
    a1, a2 = torch.randint(0, rows, (2, number))
    return a1, torch.randint(0, 2 * others // 3, (number,)), a2, torch.randint(others // 3, others, (number,))


@pytest.mark.usefixtures("always_listed")
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
@pytest.mark.parametrize("temperature", [0.01, 0.3])
def test_gradients_equal_the_reference(summation, denominator, temperature):
    for number in (0, 1, 30):
        refs = random_rows(9, 4).requires_grad_()
        for given, others in (({}, 12), ({"ref_emb": refs}, 9)):
            rows = random_rows(12, 4).requires_grad_()
            pairs, upstream = random_pairs(number, 12, others), torch.randn(12, dtype=rows.dtype)
            ways = []
            for backend in ("tiled", "reference"):
                losses, valid = supcon_loss(
                    rows, indices_tuple=pairs, temperature=temperature, summation=summation,
                    denominator=denominator, backend=backend, **given,
                )  # fmt: skip
                inputs = [rows, *given.values()]
                ways.append((losses, valid, *torch.autograd.grad((losses * upstream).sum(), inputs)))
            torch.testing.assert_close(ways[0], ways[1], rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("always_listed")
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_gradcheck(summation, denominator):
    pairs = random_pairs(12, 6, 6)

    def loss(rows):
        given = {"summation": summation, "denominator": denominator}
        return supcon_loss(rows, indices_tuple=pairs, backend="tiled", **given).losses

    assert torch.autograd.gradcheck(loss, random_rows(6, 3).requires_grad_())


@pytest.mark.usefixtures("always_listed")
def test_gradients_that_nobody_wants_are_not_made(monkeypatch):
    """Anchors that are a frozen network's, or references that are: one side's products and buffer."""
    added = []
    add = torch.Tensor.index_add_
    spy = lambda self, dim, index, source: (added.append(self.shape[0]), add(self, dim, index, source))[1]  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "index_add_", spy)
    pairs, found = random_pairs(4, 12, 9), []
    rows, refs = random_rows(12, 4), random_rows(9, 4)
    for wanted, sizes in (((True, True), {12, 9}), ((True, False), {12}), ((False, True), {9})):
        inputs = [x.detach().requires_grad_(want) for x, want in zip((rows, refs), wanted, strict=True)]
        loss = supcon_loss(inputs[0], ref_emb=inputs[1], indices_tuple=pairs, backend="tiled").mean()
        added.clear()
        loss.backward()
        assert set(added) == sizes
        found.append([x.grad for x in inputs])
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[2][1])
    assert found[1][1] is found[2][0] is None


@pytest.mark.usefixtures("always_listed")
def test_second_derivative_is_refused():
    rows = random_rows(6, 3).requires_grad_()
    loss = supcon_loss(rows, indices_tuple=random_pairs(9, 6, 6), backend="tiled").mean()
    (gradient,) = torch.autograd.grad(loss, rows, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivative needs backend='reference'"):
        gradient.sum().backward()


@pytest.mark.usefixtures("always_listed")
def test_nan_is_not_hidden():
    rows = random_rows(6, 3)
    rows[0, 0] = torch.nan
    pairs = (torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), torch.tensor([2]))
    assert supcon_loss(rows, indices_tuple=pairs, backend="tiled").losses[0].isnan()


def test_short_lists_make_no_matrix(monkeypatch):
    def refuse(problem):
        raise AssertionError("a dense matrix for a short list")

    monkeypatch.setattr(reference, "anchor_losses", refuse)
    rows, labels = torch.randn(600, 8), torch.randint(0, 30, (600,))
    hard = miners.BatchHardMiner()(rows, labels)
    assert supcon_loss(rows, indices_tuple=hard).valid.any()
    every = torch.arange(600).repeat_interleave(600), torch.arange(600).repeat(600)
    with pytest.raises(AssertionError, match="dense matrix"):
        supcon_loss(rows, indices_tuple=(*every, *every))
