"""The losses of a batch on a GPU: no forward pass makes the host wait, checked without one."""

import pytest
import torch
from helpers.pretend_gpu import GPU, WaitsForDeviceError, pretend_gpu
from pytorch_metric_learning import losses as pml
from torch import distributed as dist

from pml_supcon.distributed import collectives, shards
from pml_supcon.functional.supcon import AnchorLosses, triton
from pml_supcon.functional.supcon.global_batch import transfers
from pml_supcon.losses import (
    CrossBatchMemory,
    GlobalBatchLoss,
    LearnableTemperature,
    MaskPrototypeLoss,
    NearestNeighbourLoss,
    QueueLoss,
    RankNContrastLoss,
    SelfSupervisedLoss,
    SupConLossIn,
    SupConLossOut,
    pixels,
)

#: Per case: the loss, on any backend but Triton, which needs a driver.
LOSSES = {
    "reference": lambda: SupConLossOut(backend="reference"),
    "tiled": lambda: SupConLossOut(backend="tiled"),
    "first view": lambda: SupConLossOut(backend="tiled", contrast_mode="one"),
    "cap": lambda: SupConLossOut(backend="tiled", positives_cap=2),
    "in, shifted": lambda: SupConLossIn(backend="tiled", denominator="one_positive", temperature=0.001),
    "rank n contrast": RankNContrastLoss,
    "queue": lambda: QueueLoss(SupConLossOut(backend="tiled"), 8, 64),
    "neighbours": lambda: NearestNeighbourLoss(SupConLossOut(backend="tiled"), 8, 64),
    "neighbours of a class": lambda: NearestNeighbourLoss(
        SupConLossOut(backend="tiled"), 8, 64, neighbours="same_class"
    ),
    "learnt temperature": lambda: SupConLossOut(LearnableTemperature(), backend="tiled"),
    "learnt temperature, queue": lambda: QueueLoss(SupConLossOut(LearnableTemperature(), backend="tiled"), 8, 64),
}
ALONE = {
    "memory": lambda: CrossBatchMemory(SupConLossOut(backend="tiled"), 8, 64),
    "self-supervised": lambda: SelfSupervisedLoss(SupConLossOut(backend="tiled")),
    "global, one process": lambda: GlobalBatchLoss(SupConLossOut(backend="tiled")),
}


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(triton, "INSTALLED", False)
    with pretend_gpu(monkeypatch), torch.device(GPU):
        yield


@pytest.fixture(params=[GPU, torch.device("cpu")], ids=["labels on the GPU", "labels on the CPU"])
def home(request):
    return request.param


def steps(loss, name, home=GPU):
    for _ in range(3):
        rows = torch.empty(16, 8) if name == "memory" else torch.empty(16, 2, 8)
        labels = () if name == "self-supervised" else (torch.zeros(16, dtype=torch.int64, device=home),)
        more = {"projections": torch.empty(16, 2, 8)} if name.startswith("neighbours") else {}
        assert loss(rows, *labels, **more).device == GPU


@pytest.mark.parametrize("name", [*LOSSES, *ALONE])
def test_one_process(on_gpu, name, home):
    steps((LOSSES | ALONE)[name](), name, home)


def test_pixels_of_masks_on_the_cpu(on_gpu, home, monkeypatch):
    """The numbers of the masks are read by the host; what follows them runs here."""
    terms = AnchorLosses(torch.empty(2, 4, 4), torch.empty(2, 4, 4, dtype=torch.bool))
    monkeypatch.setattr(pixels, "mask_prototype_loss", lambda features, masks, **options: terms)
    masks = torch.zeros(2, 4, 4, dtype=torch.int64, device=home)
    assert MaskPrototypeLoss(ignore_value=0)(torch.empty(2, 8, 4, 4), masks).device == GPU


def test_pml_loss_waits(on_gpu):
    """The check can fail: PML lists all pairs."""
    with pytest.raises(WaitsForDeviceError, match="nonzero"):
        steps(pml.SupConLoss(), "memory")


@pytest.mark.parametrize("name", LOSSES)
def test_several_processes(on_gpu, monkeypatch, name, home):
    """A group of two with collectives on both devices, as `cpu:gloo,cuda:nccl`; its second process is a stand-in."""

    class Group(dist.ProcessGroup):
        pass

    def gather(output, own, group):
        assert own.device == GPU or len(own) < 16, "rows or labels are gathered on the CPU"  # sizes are, and are fewer
        output.copy_(torch.cat([own, own]) if own.ndim else torch.stack([own, own]))

    group = Group(0, 2)
    monkeypatch.setattr(shards, "COMPARED_CALLS", 0)  # the comparison of rows waits
    monkeypatch.setattr(collectives, "default_group", lambda _: group)
    monkeypatch.setattr(collectives, "_all_gather", gather)
    monkeypatch.setattr(dist, "all_reduce", lambda own, op, group: own)
    monkeypatch.setattr(dist, "get_backend_config", lambda group: "cpu:gloo,cuda:nccl")
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    monkeypatch.setattr(dist, "get_global_rank", lambda group, rank: rank)
    monkeypatch.setattr(dist, "P2POp", lambda *operation: operation)
    monkeypatch.setattr(dist, "batch_isend_irecv", lambda operations: [])
    for module in (collectives, transfers):
        monkeypatch.setattr(module, "collective_errors", lambda group, device: torch.no_grad())
    steps(GlobalBatchLoss(LOSSES[name]()), name, home)
