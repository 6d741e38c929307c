"""PML's `CrossBatchMemory` and `SelfSupervisedLoss` around our losses, beside PML's own around `SupConLoss`."""

import copy

import pytest
import supcon_oracle
import torch
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners
from supcon_batches import random_rows

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
    """With `enqueue_mask`, as for a momentum encoder: queries are contrasted with the keys in the memory."""
    ours = losses.CrossBatchMemory(losses.SupConLossOut(), embedding_size=4, memory_size=20)
    theirs = pml.CrossBatchMemory(pml.SupConLoss(), embedding_size=4, memory_size=20)
    mask = torch.arange(8) >= 4
    for rows, labels in STEPS:
        expected = value_and_gradient(theirs, rows, labels, enqueue_mask=mask)
        came = value_and_gradient(ours, rows, labels, enqueue_mask=mask)
        torch.testing.assert_close(came, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("denominator", ["all", "one_positive", "negatives"])
def test_cross_batch_memory_of_the_inner_loss(denominator):
    memory = losses.CrossBatchMemory(losses.SupConLossIn(denominator=denominator), embedding_size=4, memory_size=16)
    (first, first_labels), (second, second_labels) = STEPS[:2]
    memory(first, first_labels)
    refs, ref_labels = torch.cat([first, second]), torch.cat([first_labels, second_labels])
    same = second_labels[:, None] == ref_labels
    self_pairs = torch.cat([torch.zeros(8, 8), torch.eye(8)], dim=1).bool()
    pairs = (*torch.where(same & ~self_pairs), *torch.where(~same))
    oracle = supcon_oracle.anchor_losses(
        second, ref_emb=refs, indices_tuple=pairs, summation="in", denominator=denominator
    )
    assert memory(second, second_labels).item() == pytest.approx(supcon_oracle.mean(oracle), abs=1e-5)


@pytest.mark.parametrize("options", [{"positives_cap": 2}, {"contrast_mode": "one"}])
def test_cross_batch_memory_refuses_options_that_need_the_batch(options):
    memory = losses.CrossBatchMemory(losses.SupConLossOut(num_views=2, **options), embedding_size=4)
    with pytest.raises(ValueError, match=r"indices_tuple|ref_emb"):
        memory(STEPS[0][0], torch.arange(4).repeat(2))


def test_cross_batch_memory_copies_and_states():
    memory = losses.CrossBatchMemory(losses.SupConLossOut(), embedding_size=4, memory_size=20)
    memory(*STEPS[0])
    twin = copy.deepcopy(memory)
    assert torch.equal(memory(*STEPS[1]), twin(*STEPS[1]))
    assert set(memory.state_dict()) == {"embedding_memory", "label_memory"}


@pytest.mark.parametrize("symmetric", [True, False])
def test_self_supervised_loss_equals_that_of_supcon_loss(symmetric):
    one, other = STEPS[0][0], STEPS[1][0]
    theirs = pml.SelfSupervisedLoss(pml.SupConLoss(), symmetric=symmetric)
    for loss in (losses.SupConLossOut(), losses.SupConLossIn()):  # one positive each: the same
        ours = losses.SelfSupervisedLoss(loss, symmetric=symmetric)
        expected = value_and_gradient(theirs, one, other)
        torch.testing.assert_close(value_and_gradient(ours, one, other), expected, rtol=1e-5, atol=1e-6)
    if symmetric:
        views = torch.stack([one, other], dim=1)
        torch.testing.assert_close(losses.SupConLossOut()(views), expected[0], rtol=1e-5, atol=1e-6)


def test_self_supervised_loss_with_options_that_need_the_views():
    one, other = STEPS[0][0], STEPS[1][0]
    loss = losses.SupConLossOut(num_views=2, contrast_mode="one", positives_cap=0)
    expected = losses.SupConLossOut(contrast_mode="one")(torch.stack([one, other], dim=1))
    torch.testing.assert_close(losses.SelfSupervisedLoss(loss)(one, other), expected)


@pytest.mark.parametrize("symmetric", [True, False])
def test_self_supervised_loss_on_another_device(symmetric):
    """PML's makes the labels on the CPU wherever the embeddings are."""

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
