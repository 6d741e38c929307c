"""What one process gets wrong ends on all of them, with its rank; so does a process that dies."""

import os
import signal
import socket
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from process_groups import run_processes
from pytorch_metric_learning import losses as pml

from pml_supcon.distributed import GlobalBatchLoss
from pml_supcon.losses import QueueLoss, SupConLossIn, SupConLossOut

EMBEDDINGS, LABELS = torch.randn(4, 2, 3), torch.arange(4)

#: Per case: the arguments of rank 0, those of rank 1, and what both say.
DIFFERENT = {
    "widths": ((EMBEDDINGS, LABELS), (EMBEDDINGS[:, :, :2], LABELS), "embedding width: 3 on rank 0, 2 on rank 1"),
    "dtypes": (
        (EMBEDDINGS, LABELS),
        (EMBEDDINGS.double(), LABELS),
        "dtype of the embeddings: torch.float32 on rank 0, torch.float64 on rank 1",
    ),
    "views": ((EMBEDDINGS, LABELS), (EMBEDDINGS[:, :1], LABELS), "number of views: 2 on rank 0, 1 on rank 1"),
    "labels": ((EMBEDDINGS, LABELS), (EMBEDDINGS, None), "labels given: True on rank 0, False on rank 1"),
    "a wrong share": (
        (EMBEDDINGS, LABELS),
        (EMBEDDINGS, LABELS[:3]),
        "rank 1: Expected argument `labels` to have shape (4,), one label for each embedding, but got (3,)",
    ),
    "two wrong shares": (
        (EMBEDDINGS.long(), LABELS),
        (None, LABELS),
        "rank 0: Expected argument `embeddings` to be floating point, but got torch.int64; "
        "rank 1: Expected argument `embeddings` to be a torch.Tensor, but got NoneType",
    ),
    "gradients": (
        (EMBEDDINGS, LABELS),
        (EMBEDDINGS.clone().requires_grad_(), LABELS),
        "a gradient wanted: False on rank 0, True on rank 1",
    ),
}


def message(loss, *arguments, **more):
    with pytest.raises(ValueError, match="") as raised:
        loss(*arguments, **more)
    return str(raised.value)


def work(rank):
    said = {}
    for name, (*arguments, _) in DIFFERENT.items():
        said[name] = [message(GlobalBatchLoss(loss), *arguments[rank]) for loss in (SupConLossOut(), pml.NTXentLoss())]
    said["temperatures"] = message(GlobalBatchLoss(SupConLossOut(temperature=0.1 + rank)), EMBEDDINGS, LABELS)
    said["losses"] = message(GlobalBatchLoss([SupConLossOut(), SupConLossIn()][rank]), EMBEDDINGS, LABELS)
    said["of pml"] = message(GlobalBatchLoss(pml.TripletMarginLoss(margin=0.1 + rank)), EMBEDDINGS, LABELS)
    pairs = (LABELS, LABELS, LABELS)
    said["pairs"] = message(GlobalBatchLoss(SupConLossOut()), EMBEDDINGS, LABELS, indices_tuple=pairs)
    queue = QueueLoss(SupConLossOut(), 3, 16)
    said["keys"] = message(GlobalBatchLoss(queue), EMBEDDINGS, LABELS, **({"keys": EMBEDDINGS} if rank else {}))
    if rank:
        queue(EMBEDDINGS, LABELS)
    said["queues"] = message(GlobalBatchLoss(queue), EMBEDDINGS, LABELS)
    said["afterwards"] = GlobalBatchLoss(SupConLossOut())(EMBEDDINGS, LABELS)
    return said


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What two processes said to each case."""
    return run_processes(work, 2, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("name", DIFFERENT)
def test_shares_that_do_not_fit_end_on_every_process(said, name):
    for rank in range(2):
        for text in said[rank][name]:
            assert DIFFERENT[name][-1] in text


def test_options_that_differ_end_on_every_process(said):
    for one in said:
        assert "temperature: 0.1 on rank 0, 1.1 on rank 1" in one["temperatures"]
        assert "summation: out on rank 0, in on rank 1" in one["losses"]
        assert "margin=0.1" in one["of pml"]
        assert "margin=1.1" in one["of pml"]
        assert "keys: None on rank 0, (2, 3) torch.float32 on rank 1" in one["keys"]
        assert "num_filled=0" in one["queues"]
        assert "num_filled=8" in one["queues"]
        assert "rank 0: Expected no `indices_tuple` with several processes" in one["pairs"]


def test_processes_go_on_after_an_error(said):
    assert said[0]["afterwards"] == said[1]["afterwards"] > 0


def lose_one(rank, port, folder, how):
    torch.set_num_threads(1)
    address = {"init_method": f"tcp://127.0.0.1:{port}", "rank": rank, "world_size": 3}
    dist.init_process_group("gloo", timeout=timedelta(seconds=15), **address)
    loss = GlobalBatchLoss(SupConLossOut())
    loss(EMBEDDINGS, LABELS)
    if rank == 2:
        os.kill(os.getpid(), how)
    try:
        loss(EMBEDDINGS, LABELS)
    except ConnectionError as error:
        with open(f"{folder}/{rank}", "w") as file:
            file.write(str(error))


@pytest.mark.parametrize(
    ("how", "text"), [(signal.SIGKILL, "rank 2 was lost"), (signal.SIGSTOP, "rank 2 does not answer")]
)
def test_a_process_that_is_gone_ends_the_others_within_the_time_out(tmp_path, how, text):
    port = free_port()
    context = mp.get_context("spawn")
    processes = [context.Process(target=lose_one, args=(rank, port, str(tmp_path), how)) for rank in range(3)]
    for process in processes:
        process.start()
    started = time.monotonic()
    for process in processes[:2]:
        process.join(timeout=60)
    took = time.monotonic() - started
    processes[2].kill()
    processes[2].join()
    assert took < 45
    for rank in range(2):
        assert text in (tmp_path / str(rank)).read_text()


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
