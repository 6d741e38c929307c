"""Listed pairs without the matrix: gradients, numerics and memory; the oracle test is in `test_supcon`."""

import pytest
import torch
from helpers.supcon_batches import BACKENDS, OPTION_NAMES, OPTIONS, random_rows
from pytorch_metric_learning import miners

from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon import tiled
from pml_supcon.functional.supcon.tiled import listed


@pytest.fixture
def always_listed(monkeypatch):
    """Read every list pair by pair, in small chunks, also a list as long as the matrix."""
    monkeypatch.setattr(listed, "DENSE_SHARE", float("inf"))
    monkeypatch.setattr(listed, "CHUNK", 5)


def random_pairs(number, rows, others):
    """Return pairs, some of which are positive and negative at once."""
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
            for backend in BACKENDS:
                losses, valid = supcon_loss(
                    rows, indices_tuple=pairs, temperature=temperature, summation=summation,
                    denominator=denominator, backend=backend, **given,
                )  # fmt: skip
                inputs = [rows, *given.values()]
                ways.append((losses, valid, *torch.autograd.grad((losses * upstream).sum(), inputs)))
            torch.testing.assert_close(ways[0], ways[1], rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("always_listed")
def test_gradients_that_are_not_requested_are_not_computed(monkeypatch):
    """With anchors or references of a frozen network, only the other side needs products and a buffer."""
    added = []
    add = torch.Tensor.index_add_
    spy = lambda self, dim, index, source: (added.append(self.shape[0]), add(self, dim, index, source))[1]  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "index_add_", spy)
    pairs, gradients = random_pairs(4, 12, 9), []
    rows, refs = random_rows(12, 4), random_rows(9, 4)
    for requested, sizes in (((True, True), {12, 9}), ((True, False), {12}), ((False, True), {9})):
        inputs = [x.detach().requires_grad_(flag) for x, flag in zip((rows, refs), requested, strict=True)]
        loss = supcon_loss(inputs[0], ref_emb=inputs[1], indices_tuple=pairs, backend="tiled").mean()
        added.clear()
        loss.backward()
        assert set(added) == sizes
        gradients.append([x.grad for x in inputs])
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[2][1])
    assert gradients[1][1] is gradients[2][0] is None


@pytest.mark.usefixtures("always_listed")
def test_a_nan_row_gives_a_nan_loss():
    rows = random_rows(6, 3)
    rows[0, 0] = torch.nan
    pairs = (torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), torch.tensor([2]))
    assert supcon_loss(rows, indices_tuple=pairs, backend="tiled").losses[0].isnan()


def test_short_lists_need_no_matrix(monkeypatch):
    def matrix(problem):
        raise AssertionError("a dense matrix for a short list")

    for backend in (tiled.dense, tiled.reference):
        monkeypatch.setattr(backend, "anchor_losses", matrix)
    rows, labels = torch.randn(600, 8), torch.randint(0, 30, (600,))
    hard = miners.BatchHardMiner()(rows, labels)
    assert supcon_loss(rows, indices_tuple=hard, backend="tiled").valid.any()
    every = torch.arange(600).repeat_interleave(600), torch.arange(600).repeat(600)
    with pytest.raises(AssertionError, match="dense matrix"):
        supcon_loss(rows, indices_tuple=(*every, *every), backend="tiled")
