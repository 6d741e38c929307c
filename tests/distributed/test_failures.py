"""What one process gets wrong ends on all of them, with its rank; so does a process that dies."""

import os
import re
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers.process_groups import free_port, run_processes
from pytorch_metric_learning import distances, regularizers
from pytorch_metric_learning import losses as pml

from pml_supcon.losses import CrossBatchMemory, GlobalBatchLoss, QueueLoss, SupConLossIn, SupConLossOut

TIMEOUT_S = 10
PATIENCE_S = 100  # of a busy machine for starts and ends
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
        "requires a gradient: False on rank 0, True on rank 1",
    ),
}


#: Per case: a loss, and its options on a rank.
OPTIONS = {
    "distance": (pml.TripletMarginLoss, lambda rank: {"distance": distances.LpDistance(p=1 + rank)}),
    "own distance": (SupConLossOut, lambda rank: {"distance": distances.LpDistance(power=1 + rank)}),
    "kinds of distance": (
        SupConLossOut,
        lambda rank: {"distance": [distances.DotProductSimilarity(), distances.LpDistance()][rank]},
    ),
    "weight": (
        SupConLossOut,
        lambda rank: {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.1 + rank},
    ),
    "queue": (
        lambda dtype: QueueLoss(SupConLossOut(), 3, 16, dtype=dtype),
        lambda rank: {"dtype": [torch.float32, torch.float64][rank]},
    ),
}


def references(*, width=3, dtype=torch.float32, gradient=False, labels=True):
    ref_emb = torch.randn(5, width, dtype=dtype).requires_grad_(gradient)
    return {"ref_emb": ref_emb, "ref_labels": torch.arange(5) if labels else None}


#: Per case: the references on a rank.
REFERENCES = {
    "ref_emb on one": lambda rank: references() if rank else {},
    "ref_emb width": lambda rank: references(width=3 + rank),
    "ref_emb dtype": lambda rank: references(dtype=[torch.float32, torch.float64][rank]),
    "ref_emb gradient": lambda rank: references(gradient=bool(rank)),
    "ref_labels on one": lambda rank: references(labels=bool(rank)),
}


class BrokenMiner(torch.nn.Module):
    def forward(self, *_):
        raise KeyError("of the miner")


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
    for name, (kind, options) in OPTIONS.items():
        said[name] = message(GlobalBatchLoss(kind(**options(rank))), EMBEDDINGS, LABELS)
    for name, more in REFERENCES.items():
        said[name] = message(GlobalBatchLoss(pml.NTXentLoss()), EMBEDDINGS[:, 0], LABELS, **more(rank))
    memory = CrossBatchMemory(SupConLossOut(), 3, 16)
    if rank:
        memory(EMBEDDINGS[:, 0], LABELS)
    said["memories"] = message(GlobalBatchLoss(memory), EMBEDDINGS[:, 0], LABELS)
    with pytest.raises(RuntimeError, match="rank 0: KeyError: 'of the miner'"):
        GlobalBatchLoss(SupConLossOut(), miner=BrokenMiner())(EMBEDDINGS, LABELS)
    mined = GlobalBatchLoss(SupConLossOut(), miner=BrokenMiner())
    said["unlabelled"] = message(mined, EMBEDDINGS)
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
        for name in (*OPTIONS, "memories"):
            assert "loss: " in one[name], name
        assert "rows (3,) torch.float32 on rank 0, rows (3,) torch.float32 with a gradient" in one["ref_emb gradient"]
        assert "rank 1: Expected `ref_emb` to have the width of the embeddings, 3, but got 4" in one["ref_emb width"]
        assert "rank 1: Expected `ref_emb` to have the dtype" in one["ref_emb dtype"]
        assert "ref_emb: None on rank 0, rows (3,) torch.float32 on rank 1" in one["ref_emb on one"]
        assert "ref_labels given: False on rank 0, True on rank 1" in one["ref_labels on one"]
        assert "rank 0: Expected `labels` with a `miner`" in one["unlabelled"]
        assert "keys: None on rank 0, rows (2, 3) torch.float32 on rank 1" in one["keys"]
        assert "state=[0, 0, -1]" in one["queues"]
        assert "state=[8, 8, 1]" in one["queues"]
        assert "rank 0: Expected no `indices_tuple` with several processes" in one["pairs"]


def test_processes_go_on_after_an_error(said):
    assert said[0]["afterwards"] == said[1]["afterwards"] > 0


def lose_one(rank, port, folder, how):
    """Lose rank 2 between two losses; save what the others raise, and after how many seconds."""
    torch.set_num_threads(1)
    address = {"init_method": f"tcp://127.0.0.1:{port}", "rank": rank, "world_size": 3}
    dist.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE_S), **address)
    group = dist.new_group(timeout=timedelta(seconds=TIMEOUT_S))
    dist.barrier()  # all have started, and wait for each other no longer than the time-out from here on
    loss = GlobalBatchLoss(SupConLossOut(), group=group)
    loss(EMBEDDINGS, LABELS)
    if rank == 2:
        os.kill(os.getpid(), how)
    wait_for(Path(folder) / "gone")
    started = time.monotonic()
    try:
        loss(EMBEDDINGS, LABELS)
    except ConnectionError as error:
        torch.save((time.monotonic() - started, str(error)), f"{folder}/{rank}")
    if rank == 0:  # it holds the store in which the others look up who answers
        wait_for(Path(folder) / "1")


def wait_for(file):
    """Wait until a file exists."""
    started = time.monotonic()
    while not file.exists() and time.monotonic() - started < PATIENCE_S:
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_process_that_is_gone_ends_the_others_within_the_time_out(tmp_path, how):
    """The others begin the next loss when the process has ended or stopped, so that all can tell.

    On a busy machine one of the others may be too slow to answer as well, and is then named beside the stopped one.
    """
    port = free_port()
    context = mp.get_context("spawn")
    processes = [context.Process(target=lose_one, args=(rank, port, str(tmp_path), how)) for rank in range(3)]
    for process in processes:
        process.start()
    lost = processes[2]
    if how == signal.SIGKILL:
        lost.join(PATIENCE_S)
    else:
        os.waitid(os.P_PID, lost.pid, os.WSTOPPED)
    (tmp_path / "gone").touch()
    for process in processes[:2]:
        process.join(PATIENCE_S)
    lost.kill()
    lost.join()
    for rank in range(2):
        took, said = torch.load(tmp_path / str(rank))
        named = "rank 2 was lost" if how == signal.SIGKILL else f"rank ({1 - rank}, )?2 does not answer"
        assert re.search(named, said), said
        assert took < PATIENCE_S
