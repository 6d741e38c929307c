"""Listed pairs without the matrix: gradients, numerics and memory; the oracle test is in `test_supcon`."""

import itertools

import pytest
import torch
from helpers.supcon_batches import BACKENDS, OPTION_NAMES, OPTIONS, problem_of, random_rows
from pytorch_metric_learning import miners

from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon import checks, dense, tiled
from pml_supcon.functional.supcon.backends import choose_backend
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


@pytest.mark.parametrize("temperature", [0.01, 0.3])
@pytest.mark.parametrize("summation", ["out", "in"])
def test_a_matrix_without_the_anchors_that_have_no_positive_changes_nothing(monkeypatch, summation, temperature):
    monkeypatch.setattr(dense, "COMPACT_PAIRS", 0)
    refs, mask = random_rows(9, 4).requires_grad_(), torch.arange(12) != 7
    for positives, given in itertools.product((0, 1, 5, 6), ({}, {"ref_emb": refs}, {"anchors": mask})):
        rows, others = random_rows(12, 4).requires_grad_(), 9 if "ref_emb" in given else 12
        a1, p, a2, n = random_pairs(40, 12, others)
        pairs, upstream = (a1[:positives], p[:positives], a2, n), torch.randn(12, dtype=rows.dtype)
        ways = []
        for backend in ("dense", "reference"):
            losses, valid = supcon_loss(
                rows, indices_tuple=pairs, temperature=temperature, summation=summation, backend=backend, **given
            )
            inputs = [rows, refs] if "ref_emb" in given else [rows]
            ways.append((losses, valid, *torch.autograd.grad((losses * upstream).sum(), inputs)))
        torch.testing.assert_close(ways[0], ways[1], rtol=1e-9, atol=1e-10)
    assert (dense.kept_anchors(problem_of(rows, None, indices_tuple=pairs, temperature=0.3)) == pairs[0].unique()).all()


def test_auto_reads_short_lists_pair_by_pair_and_long_ones_in_the_matrix():
    rows, few = torch.randn(512, 8), torch.arange(20)
    a = torch.arange(512).repeat_interleave(4)
    n = (a + torch.arange(4).repeat(512) + 1) % 512
    for pairs, backend in (
        ((a[::4], n[::4], a[::4], n[1::4]), tiled),  # two pairs of each anchor
        ((a, n, a, n), dense),  # eight of each
        ((few, few + 1, a, n), dense),  # few anchors with a positive
    ):
        assert choose_backend(problem_of(rows, None, indices_tuple=pairs)) is backend


@pytest.mark.parametrize("short", [0, 2**14])
@pytest.mark.parametrize("wrong", range(4))
@pytest.mark.parametrize("value", [-1, 6, 9])
def test_row_numbers_out_of_range_are_an_error_for_short_and_long_lists(monkeypatch, short, wrong, value):
    monkeypatch.setattr(checks, "SHORT_LISTS", short)
    pairs = [torch.tensor([0, 1, 5]) for _ in range(4)]
    pairs[wrong][1] = value
    rows, refs = random_rows(6, 3), random_rows(9, 3)
    name = ("anchors", "positives", "anchors", "negatives")[wrong]
    with pytest.raises(IndexError, match=rf"{name} in .* to be row numbers in \[0, 6\), but got {min(value, 0)} to"):
        supcon_loss(rows, indices_tuple=pairs)
    if name != "anchors" and value == 6:  # a row of the references
        assert supcon_loss(rows, ref_emb=refs, indices_tuple=pairs).valid.any()
    else:
        with pytest.raises(IndexError, match=rf"{name} in .* to be row numbers in"):
            supcon_loss(rows, ref_emb=refs, indices_tuple=pairs)
