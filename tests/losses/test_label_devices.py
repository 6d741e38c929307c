"""Labels on another device than the embeddings: copied once, and the host does not wait; checked without a GPU."""

from unittest.mock import Mock

import pytest
import torch
from helpers.pretend_gpu import GPU, pretend_gpu
from torch import nn

from pml_supcon._pml.miners import CheckedMiner
from pml_supcon.functional import supcon_loss
from pml_supcon.functional.gradient_shares import check_arguments
from pml_supcon.functional.supcon import checks
from pml_supcon.losses import GlobalBatchLoss, SupConLossOut
from pml_supcon.losses import supcon as supcon_module
from pml_supcon.targets import SoftLabels

ROWS, LABELS = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
META = ROWS.to("meta")  # embeddings on another device than the labels, on any machine


@pytest.fixture
def on_gpu(monkeypatch):
    with pretend_gpu(monkeypatch):
        yield


class Recorder(nn.Module):
    """A loss that keeps its arguments."""

    def forward(self, embeddings, labels, ref_emb=None, ref_labels=None):
        self.given = labels, ref_labels
        return embeddings.sum()


class RecordingMiner(CheckedMiner):
    """A miner that keeps its arguments and finds nothing."""

    def mine(self, embeddings, labels, ref_emb, ref_labels):
        self.given = labels, ref_labels
        return (torch.empty(0, dtype=torch.int64),) * 3


def test_nothing_is_copied_on_one_device():
    assert checks.check_labels("labels", LABELS, 6, ROWS.device) is LABELS
    index = torch.tensor([0, 1])
    assert all(found is index for found in checks.check_pairs((index,) * 4, ROWS.device, 6, 6))


@pytest.mark.parametrize("dtype", checks.LABEL_DTYPES, ids=str)
def test_labels_of_any_integer_dtype_are_copied_without_waiting(on_gpu, dtype):
    found = checks.check_labels("labels", LABELS.to(dtype), 6, GPU)
    assert (found.device, found.dtype) == (GPU, dtype)


def test_pairs_are_copied_without_waiting(on_gpu):
    index = torch.tensor([0, 1])
    for number in (3, 4):
        assert {found.device for found in checks.check_pairs((index,) * number, GPU, 6, 6)} == {GPU}


def test_rows_of_one_sample_with_two_labels(on_gpu):
    """Labels on the CPU are read there, for embeddings on a GPU too."""
    rows = torch.empty(6, 3, device=GPU)
    with pytest.raises(ValueError, match="Expected `labels` to repeat the labels of the first view"):
        supcon_loss(rows, LABELS.sort().values, num_views=2)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint16])
def test_a_loss_with_references(dtype):
    labels = LABELS.to(dtype)
    assert supcon_loss(META, labels, ref_emb=META, ref_labels=labels).losses.is_meta
    assert SupConLossOut()(META, labels, None, META.clone(), labels).is_meta


def test_embeddings_and_references_on_two_devices_are_refused():
    with pytest.raises(ValueError, match="Expected `ref_emb` to have the device of the embeddings, meta, but got cpu"):
        supcon_loss(META, LABELS, ref_emb=ROWS, ref_labels=LABELS)


def test_the_batch_as_its_own_references_stays_the_batch(monkeypatch):
    """PML's convention, `ref_emb is embeddings`: no row is its own positive, wherever its labels were."""
    build = Mock(wraps=supcon_module.build_problem)
    monkeypatch.setattr(supcon_module, "build_problem", build)
    for rows in (ROWS, META):
        SupConLossOut()(rows, LABELS, None, rows, LABELS)
    assert [call.kwargs["ref_emb"] for call in build.call_args_list] == [None, None]


def test_labels_of_a_target():
    soft = torch.nn.functional.one_hot(LABELS).float()
    assert SupConLossOut(target=SoftLabels())(META, soft, None, META.clone(), soft).is_meta
    with pytest.raises(ValueError, match="`labels` to have values, but got a tensor on the meta device"):
        SupConLossOut(target=SoftLabels())(ROWS, soft.to("meta"))


def test_a_loss_of_pml_in_the_global_batch():
    loss = Recorder()
    GlobalBatchLoss(loss)(META, LABELS.int(), ref_emb=META, ref_labels=LABELS)
    assert all(labels.is_meta for labels in loss.given)


def test_miners(on_gpu):
    rows, recorder = torch.empty(6, 3, device=GPU), RecordingMiner()
    recorder(rows, LABELS, rows.clone(), LABELS.int())
    assert {labels.device for labels in recorder.given} == {GPU}
    recorder(rows, LABELS, rows, LABELS)
    assert recorder.given[0] is recorder.given[1]  # PML's convention for rows without pairs with themselves


def test_gradient_shares(on_gpu):
    assert check_arguments(torch.empty(6, 3, device=GPU), LABELS, "triplet", 0.1, 0.05).device == GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_values_on_a_real_gpu():
    rows, loss = ROWS.cuda(), SupConLossOut()
    for dtype in checks.LABEL_DTYPES:
        assert loss(rows, LABELS.to(dtype)) == loss(rows, LABELS.cuda())
    assert loss(ROWS, LABELS.cuda()) == loss(ROWS, LABELS)
