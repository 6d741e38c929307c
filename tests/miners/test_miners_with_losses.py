"""The miners with the losses that they are for: a finite loss, and a gradient."""

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
    "random": lambda: CappedPositivesMiner(2),
    "hardest": lambda: CappedPositivesMiner(2, choose="hardest"),
    "easiest": lambda: CappedPositivesMiner(2, choose="easiest"),
}
LOSSES = {
    "contrastive": pml.ContrastiveLoss,
    "triplet": pml.TripletMarginLoss,
    "supcon of pml": pml.SupConLoss,
    "supcon": SupConLossOut,
}


@pytest.mark.parametrize(("measured", "references"), [(False, True), (True, False)], ids=["references", "measured"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("miner", MINERS)
def test_every_loss_takes_what_every_miner_finds(miner, loss, references, measured):
    mine = MeasuredMiner(MINERS[miner]()) if measured else MINERS[miner]()
    embeddings, labels = torch.randn(16, 6, requires_grad=True), torch.arange(16) % 4
    more = {"ref_emb": torch.randn(9, 6), "ref_labels": torch.arange(9) % 4} if references else {}
    chosen = mine(embeddings, labels, **more)
    value = LOSSES[loss]()(embeddings, labels, chosen, **more)
    value.backward()
    assert value.isfinite()
    assert value > 0
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.any()


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("labels", [[0] * 6, list(range(6))], ids=["one class", "singletons"])
def test_batches_without_triplets_have_no_triplet_loss(labels, miner):
    embeddings, labels = torch.randn(6, 3, requires_grad=True), torch.tensor(labels)
    loss = pml.TripletMarginLoss()(embeddings, labels, MINERS[miner]()(embeddings, labels))
    assert loss == 0


@pytest.mark.parametrize("memory", [pml.CrossBatchMemory, CrossBatchMemory])
@pytest.mark.parametrize("miner", MINERS)
def test_in_a_memory(miner, memory):
    measured = MeasuredMiner(MINERS[miner]())
    loss = memory(pml.ContrastiveLoss(), 5, memory_size=24, miner=measured)
    for _ in range(3):
        embeddings = torch.randn(12, 5, requires_grad=True)
        value = loss(embeddings, torch.arange(12) % 3)
    value.backward()
    assert value.isfinite()
    assert embeddings.grad.any()
    assert measured.report()["seconds"] > 0
