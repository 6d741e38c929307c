"""The miners with PML's losses and with this package's: a finite loss and a gradient."""

import pytest
import torch
from pytorch_metric_learning import losses as pml

from pml_supcon.losses import CrossBatchMemory, SupConLossOut
from pml_supcon.miners import CappedPositivesMiner, MeasuredMiner, OnlineHardExampleMiner

MINERS = {
    "hard pairs": lambda: OnlineHardExampleMiner(0.3),
    "hard triplets": lambda: OnlineHardExampleMiner(0.3, kind="triplets"),
    "pairs by loss": lambda: OnlineHardExampleMiner(0.3, loss=pml.ContrastiveLoss()),
    "triplets by loss": lambda: OnlineHardExampleMiner(0.3, kind="triplets", loss=pml.TripletMarginLoss()),
    "capped": lambda: CappedPositivesMiner(2),
    "measured": lambda: MeasuredMiner(CappedPositivesMiner(2)),
}


@pytest.mark.parametrize("loss", [pml.ContrastiveLoss(), pml.TripletMarginLoss(), SupConLossOut()])
@pytest.mark.parametrize("miner", MINERS)
def test_every_loss_accepts_the_result_of_every_miner(miner, loss):
    embeddings, labels = torch.randn(16, 6, requires_grad=True), torch.arange(16) % 4
    references = {"ref_emb": torch.randn(9, 6), "ref_labels": torch.arange(9) % 4}
    value = loss(embeddings, labels, MINERS[miner]()(embeddings, labels, **references), **references)
    value.backward()
    assert 0 < value < torch.inf
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.any()


@pytest.mark.parametrize("miner", MINERS)
def test_batches_without_triplets_have_no_triplet_loss(miner):
    for labels in (torch.zeros(6).long(), torch.arange(6)):
        embeddings = torch.randn(6, 3, requires_grad=True)
        assert pml.TripletMarginLoss()(embeddings, labels, MINERS[miner]()(embeddings, labels)) == 0


@pytest.mark.parametrize("memory", [pml.CrossBatchMemory, CrossBatchMemory])
@pytest.mark.parametrize("miner", MINERS)
def test_in_a_memory(miner, memory):
    loss = memory(pml.ContrastiveLoss(), 5, memory_size=24, miner=MINERS[miner]())
    for _ in range(3):
        embeddings = torch.randn(12, 5, requires_grad=True)
        value = loss(embeddings, torch.arange(12) % 3)
    value.backward()
    assert value.isfinite()
    assert embeddings.grad.any()
