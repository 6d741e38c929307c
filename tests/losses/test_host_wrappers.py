"""PML's `CrossBatchMemory` and `SelfSupervisedLoss` around our losses, beside PML's own around `SupConLoss`."""

import copy
import pickle

import pytest
import torch
from helpers import supcon_oracle
from helpers.supcon_batches import random_rows
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners

from pml_supcon import losses

STEPS = [
    (random_rows(8, 4, dtype=torch.float32), torch.randint(0, 3, (8,))) for _ in range(4)
]  # the memory wraps round


def value_and_gradient(loss, rows, *args, **options):
    rows = rows.clone().requires_grad_()
    value = loss(rows, *args, **options)
    return value.detach(), torch.autograd.grad(value, rows)[0]


@pytest.mark.parametrize("miner", [None, miners.MultiSimilarityMiner(), miners.BatchHardMiner()])
def test_cross_batch_memory_equals_that_of_supcon_loss(miner):
    ours = losses.CrossBatchMemory(losses.SupConLossOut(), embedding_size=4, memory_size=20, miner=miner)
    theirs = pml.CrossBatchMemory(pml.SupConLoss(), embedding_size=4, memory_size=20, miner=miner)
    for rows, labels in STEPS:
        expected = value_and_gradient(theirs, rows, labels)
        torch.testing.assert_close(value_and_gradient(ours, rows, labels), expected, rtol=1e-5, atol=1e-6)
        assert expected[0] > 0


def test_cross_batch_memory_of_keys():
    """With `enqueue_mask` queries are contrasted with the keys of a momentum encoder in the memory."""
    ours = losses.CrossBatchMemory(losses.SupConLossOut(), embedding_size=4, memory_size=20)
    theirs = pml.CrossBatchMemory(pml.SupConLoss(), embedding_size=4, memory_size=20)
    mask = torch.arange(8) >= 4
    for rows, labels in STEPS:
        expected = value_and_gradient(theirs, rows, labels, enqueue_mask=mask)
        came = value_and_gradient(ours, rows, labels, enqueue_mask=mask)
        torch.testing.assert_close(came, expected, rtol=1e-5, atol=1e-6)


class ListedMemory(pml.CrossBatchMemory):
    """PML's memory, which lists all pairs, around our losses."""

    @staticmethod
    def supported_losses():
        return losses.CrossBatchMemory.supported_losses()


def no_lists(*_):
    raise AssertionError("pairs were listed")


@pytest.mark.parametrize("loss_class", [losses.SupConLossOut, losses.SupConLossIn])
@pytest.mark.parametrize("denominator", ["all", "one_positive", "negatives"])
@pytest.mark.parametrize("memory_size", [8, 20, 23])
def test_cross_batch_memory_without_lists_is_that_with_lists(loss_class, denominator, memory_size, monkeypatch):
    loss, options = loss_class(denominator=denominator), {"embedding_size": 4, "memory_size": memory_size}
    theirs, ours = ListedMemory(loss, **options), losses.CrossBatchMemory(loss, **options)
    monkeypatch.setattr(ours, "create_indices_tuple", no_lists)
    for step, (rows, labels) in enumerate([*STEPS, *STEPS]):
        rows, labels = rows.double()[: 8 - step % 3], labels[: 8 - step % 3]
        expected = value_and_gradient(theirs, rows, labels)
        torch.testing.assert_close(value_and_gradient(ours, rows, labels), expected, rtol=1e-10, atol=1e-12)
        assert torch.equal(ours.embedding_memory, theirs.embedding_memory)
        assert torch.equal(ours.label_memory, theirs.label_memory)
        assert (ours.queue_idx, ours.has_been_filled) == (theirs.queue_idx, theirs.has_been_filled)


def test_cross_batch_memory_with_anchors_of_the_first_view():
    memory = losses.CrossBatchMemory(
        losses.SupConLossOut(num_views=2, contrast_mode="one"), embedding_size=4, memory_size=16
    )
    labels = torch.tensor([0, 1, 0, 2]).repeat(2)
    (first, _), (second, _) = STEPS[:2]
    memory(first, labels)
    refs, ref_labels = torch.cat([second, first]), labels.repeat(2)
    same = labels[:, None] == ref_labels
    pairs = (*torch.where(same & ~torch.eye(8, 16).bool()), *torch.where(~same))
    oracle = supcon_oracle.anchor_losses(second, ref_emb=refs, indices_tuple=pairs, num_views=2, contrast_mode="one")
    assert memory(second, labels).item() == pytest.approx(supcon_oracle.mean(oracle), abs=1e-5)


@pytest.mark.parametrize("loss", [losses.SupConLossOut(), pml.TripletMarginLoss()])
def test_a_batch_that_does_not_fit_does_not_enter_the_memory(loss):
    memory = losses.CrossBatchMemory(loss, embedding_size=4, memory_size=7)
    with pytest.raises(ValueError, match=r"`memory_size` to be at least the 8 rows of a batch, .* but got 7"):
        memory(*STEPS[0])
    with pytest.raises(ValueError, match=r"the width embedding_size=4, but got \(8, 3\)"):
        memory(STEPS[0][0][:, :3], STEPS[0][1])
    if isinstance(loss, losses.SupConLossOut):
        with pytest.raises(TypeError, match=r"`labels` to be a torch\.Tensor, but got NoneType"):
            memory(STEPS[0][0][:4], None)
        with pytest.raises(ValueError, match="Expected no `ref_emb` with `positives_cap`"):
            losses.CrossBatchMemory(losses.SupConLossOut(num_views=2, positives_cap=2), 4)(
                STEPS[0][0], torch.arange(8) % 4
            )
    assert memory.queue_idx == 0


def test_cross_batch_memory_stays_empty_when_nothing_enters():
    """PML's memory would count as filled, and contrast with rows of zeros."""
    memory = losses.CrossBatchMemory(losses.SupConLossOut(), embedding_size=4, memory_size=20)
    memory(*STEPS[0], enqueue_mask=torch.zeros(8, dtype=torch.bool))
    memory(STEPS[0][0][:0], STEPS[0][1][:0])
    assert not memory.has_been_filled
    theirs = pml.CrossBatchMemory(pml.SupConLoss(), embedding_size=4, memory_size=20)
    expected = value_and_gradient(theirs, *STEPS[1])
    torch.testing.assert_close(value_and_gradient(memory, *STEPS[1]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("miner", [None, miners.MultiSimilarityMiner()])
def test_cross_batch_memory_copies_and_states(miner, dtype):
    def new_memory():
        return losses.CrossBatchMemory(losses.SupConLossOut(), embedding_size=4, memory_size=20, miner=miner)

    steps = [(rows.to(dtype) / 3, labels) for rows, labels in STEPS]  # not exact in float32
    for number in (1, 3):  # partly filled, and wrapped round
        memory, loaded = new_memory(), new_memory()
        for step in steps[:number]:
            memory(*step)
        assert set(memory.state_dict()) == {"embedding_memory", "label_memory", "_extra_state"}
        loaded.load_state_dict(memory.state_dict())
        others = [loaded, copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))]
        for step in steps:
            expected = memory(*step)
            assert all(torch.equal(other(*step), expected) for other in others)


def test_cross_batch_memory_of_a_state_of_pml():
    theirs = pml.CrossBatchMemory(pml.SupConLoss(), embedding_size=4, memory_size=20)
    theirs(*STEPS[0])
    memory = losses.CrossBatchMemory(losses.SupConLossOut(), embedding_size=4, memory_size=20)
    with pytest.raises(RuntimeError, match="_extra_state"):
        memory.load_state_dict(theirs.state_dict())
    memory.load_state_dict(theirs.state_dict(), strict=False)
    assert memory.queue_idx == 0
    state = memory.state_dict() | {"_extra_state": torch.tensor([20, 1])}
    with pytest.raises(ValueError, match="memory of 20 rows, but got next row 20"):
        memory.load_state_dict(state)


@pytest.mark.parametrize("symmetric", [True, False])
def test_self_supervised_loss_equals_that_of_supcon_loss(symmetric):
    one, other = STEPS[0][0], STEPS[1][0]
    theirs = pml.SelfSupervisedLoss(pml.SupConLoss(), symmetric=symmetric)
    for loss in (losses.SupConLossOut(), losses.SupConLossIn()):  # one positive each: the same
        ours = losses.SelfSupervisedLoss(loss, symmetric=symmetric)
        expected = value_and_gradient(theirs, one, other)
        torch.testing.assert_close(value_and_gradient(ours, one, other), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(ours(embeddings=one, ref_emb=other), ours(one, other))


def test_self_supervised_loss_with_options_that_need_the_views():
    one, other = STEPS[0][0], STEPS[1][0]
    loss = losses.SupConLossOut(num_views=2, contrast_mode="one", positives_cap=0)
    expected = losses.SupConLossOut(contrast_mode="one")(torch.stack([one, other], dim=1))
    torch.testing.assert_close(losses.SelfSupervisedLoss(loss)(one, other), expected)


def views(number):
    return [rows.double() for rows, _ in STEPS[:number]]


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("loss", [
    losses.SupConLossOut(), losses.SupConLossIn(denominator="one_positive"), pml.NTXentLoss(), pml.TripletMarginLoss(),
], ids=lambda loss: type(loss).__name__)  # fmt: skip
def test_self_supervised_loss_of_any_number_of_views(loss, number):
    samples = views(number)
    wrapped = losses.SelfSupervisedLoss(loss)
    value, gradient = value_and_gradient(wrapped, torch.stack(samples, dim=1))
    expected = loss(torch.cat(samples), torch.arange(8).repeat(number))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(wrapped(*samples), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(value_and_gradient(wrapped, *samples)[1], gradient[:, 0])
    if isinstance(loss, losses.SupConLossOut):
        oracle = supcon_oracle.anchor_losses(torch.cat(samples), num_views=number)
        assert value.item() == pytest.approx(supcon_oracle.mean(oracle), rel=1e-10)


@pytest.mark.parametrize("number", [2, 3, 4])
def test_self_supervised_loss_of_the_first_view_against_the_rest(number):
    samples = views(number)
    rest, labels = torch.cat(samples[1:]), torch.arange(8)
    for summation, loss in (("out", losses.SupConLossOut()), ("in", losses.SupConLossIn(contrast_mode="one"))):
        wrapped = losses.SelfSupervisedLoss(loss, symmetric=False)
        oracle = supcon_oracle.anchor_losses(
            samples[0], labels, ref_emb=rest, ref_labels=labels.repeat(number - 1), summation=summation
        )
        assert wrapped(*samples).item() == pytest.approx(supcon_oracle.mean(oracle), rel=1e-10)
        assert torch.equal(wrapped(torch.stack(samples, dim=1)), wrapped(*samples))
    theirs = pml.NTXentLoss()
    expected = theirs(samples[0], labels, ref_emb=rest, ref_labels=labels.repeat(number - 1))
    assert torch.equal(losses.SelfSupervisedLoss(theirs, symmetric=False)(*samples), expected)


@pytest.mark.parametrize("loss", [losses.SupConLossOut(), pml.SupConLoss()])
def test_self_supervised_loss_needs_equal_views(loss):
    wrapped, rows = losses.SelfSupervisedLoss(loss), STEPS[0][0]
    for alone in (rows, rows[:, None]):
        with pytest.raises(ValueError, match="at least two views"):
            wrapped(alone)
    with pytest.raises(ValueError, match=r"shape of the first, \(8, 4\), but got \(7, 4\)"):
        wrapped(rows, rows, rows[:7])
    with pytest.raises(ValueError, match=r"`embeddings` to have shape \(N, D\), but got \(8, 2, 4\)"):
        wrapped(torch.stack([rows, rows], dim=1), rows)
    with pytest.raises(TypeError, match=r"`ref_emb` to be a torch\.Tensor, but got NoneType"):
        wrapped(rows, None, rows)


def test_self_supervised_loss_of_one_view_as_anchors_refuses_num_views():
    with pytest.raises(ValueError, match=r"without `num_views` with `symmetric=False`.* but got num_views=2"):
        losses.SelfSupervisedLoss(losses.SupConLossOut(num_views=2), symmetric=False)


@pytest.mark.parametrize("symmetric", [True, False])
def test_self_supervised_loss_on_another_device(symmetric):
    """PML creates the labels on the CPU."""

    class SupConLossOut(losses.SupConLossOut):  # PML knows losses by their name
        def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels, num_views=None):
            used = [embeddings, labels, *(x for x in (ref_emb, ref_labels) if x is not None)]
            assert {x.device.type for x in used} == {"meta"}
            return {"loss": self.zero_loss()}  # the meta device computes nothing

    one, other = torch.randn(4, 3, device="meta"), torch.randn(4, 3, device="meta")
    assert losses.SelfSupervisedLoss(SupConLossOut(), symmetric=symmetric)(one, other).device.type == "meta"


@pytest.mark.parametrize("wrapper", [losses.CrossBatchMemory, losses.SelfSupervisedLoss])
def test_wrappers_take_the_losses_that_they_name(wrapper):
    assert set(wrapper.supported_losses()) - set(wrapper.__base__.supported_losses()) == {
        "SupConLossOut",
        "SupConLossIn",
    }
    options = {"embedding_size": 4} if wrapper is losses.CrossBatchMemory else {}
    wrapper(pml.TripletMarginLoss(), **options)
    with pytest.raises(Exception, match="not supported for ArcFaceLoss"):
        wrapper(pml.ArcFaceLoss(3, 4), **options)
