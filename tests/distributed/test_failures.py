"""An error on one process is raised on all of them and names its rank; so does the loss of a process."""

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

from pml_supcon.functional import group_supcon_loss
from pml_supcon.losses import CrossBatchMemory, GlobalBatchLoss, QueueLoss, SupConLossIn, SupConLossOut

TIMEOUT_S = 10
PATIENCE_S = 100  # for a busy machine to start and to end processes
EMBEDDINGS, LABELS = torch.randn(4, 2, 3), torch.arange(4)

#: Per case: the arguments of rank 0, the arguments of rank 1, and the message of both.
DIFFERENT = {
    "widths": ((EMBEDDINGS, LABELS), (EMBEDDINGS[:, :, :2], LABELS), "embedding width: 3 on rank 0, 2 on rank 1"),
    "dtypes": (
        (EMBEDDINGS, LABELS),
        (EMBEDDINGS.double(), LABELS),
        "dtype of the embeddings: torch.float32 on rank 0, torch.float64 on rank 1",
    ),
    "views": ((EMBEDDINGS, LABELS), (EMBEDDINGS[:, :1], LABELS), "number of views: 2 on rank 0, 1 on rank 1"),
    "labels": ((EMBEDDINGS, LABELS), (EMBEDDINGS, None), "labels given: True on rank 0, False on rank 1"),
    "array": (
        (EMBEDDINGS, LABELS),
        (EMBEDDINGS.numpy(), LABELS),
        "rank 1: Expected argument `embeddings` to be a torch.Tensor, but got ndarray",
    ),
    "two invalid shards": (
        (EMBEDDINGS.long(), LABELS),
        (EMBEDDINGS, LABELS[:3]),
        "rank 0: Expected argument `embeddings` to be floating point, but got torch.int64; "
        "rank 1: Expected argument `labels` to have shape (4,), one label for each embedding, but got (3,)",
    ),
    "gradients": (
        (EMBEDDINGS, LABELS),
        (EMBEDDINGS.clone().requires_grad_(), LABELS),
        "requires a gradient: False on rank 0, True on rank 1",
    ),
}

#: Per case: the loss on a rank, and a part of the message.
OPTIONS = {
    "temperature": (lambda rank: SupConLossOut(0.1 + rank), "temperature: 0.1 on rank 0, 1.1 on rank 1"),
    "summation": (lambda rank: [SupConLossOut(), SupConLossIn()][rank], "summation: out on rank 0, in on rank 1"),
    "margin": (lambda rank: pml.TripletMarginLoss(margin=0.1 + rank), "margin=1.1"),
    "distance": (
        lambda rank: SupConLossOut(distance=[distances.DotProductSimilarity(), distances.LpDistance()][rank]),
        "loss: ",
    ),
    "weight": (
        lambda rank: SupConLossOut(embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=0.1 + rank),
        "loss: ",
    ),
    "queue": (
        lambda rank: QueueLoss(SupConLossOut(), 3, 16, dtype=[torch.float32, torch.float64][rank]),
        "queue_embeddings=torch.float64",
    ),
}


def references(*, width=3, dtype=torch.float32, gradient=False, labels=True):
    ref_emb = torch.randn(5, width, dtype=dtype).requires_grad_(gradient)
    return {"ref_emb": ref_emb, "ref_labels": torch.arange(5) if labels else None}


#: Per case: the references on a rank, and a part of the message.
REFERENCES = {
    "on one rank": (
        lambda rank: references() if rank else {},
        "ref_emb: None on rank 0, rows (3,) torch.float32 on rank 1",
    ),
    "width": (
        lambda rank: references(width=3 + rank),
        "rank 1: Expected `ref_emb` to have the width",
    ),
    "gradient": (
        lambda rank: references(gradient=bool(rank)),
        "rows (3,) torch.float32 on rank 0, rows (3,) torch.float32 with a gradient",
    ),
    "labels": (lambda rank: references(labels=bool(rank)), "ref_labels given: False on rank 0, True on rank 1"),
}


#: Per case: the keyword arguments of `group_supcon_loss` on a rank, and a part of the message.
KEYWORDS = {
    "value": (lambda rank: {"temperature": rank}, "rank 0: Expected argument `temperature` to be above 0, but got 0"),
    "name": (lambda rank: {"temprature": 0.1} if rank else {}, "got an unexpected keyword argument 'temprature'"),
    "pairs": (
        lambda rank: {"indices_tuple": (LABELS,) * 3} if rank else {},
        "rank 1: Expected neither `indices_tuple` nor `ref_starts_with_batch`",
    ),
    "difference": (lambda rank: {"positives_cap": 2 * rank}, "positives_cap: 0 on rank 0, 2 on rank 1"),
}


class BrokenMiner(torch.nn.Module):
    def forward(self, *_):
        raise KeyError("of the miner")


def message(loss, *arguments, **more):
    with pytest.raises(ValueError, match="") as raised:
        GlobalBatchLoss(loss)(*arguments, **more)
    return str(raised.value)


def message_of_function(**more):
    with pytest.raises((ValueError, RuntimeError)) as raised:
        group_supcon_loss(EMBEDDINGS, LABELS, group=dist.group.WORLD, **more)
    return str(raised.value)


def work(rank):
    """Return pairs of a message and its expected part."""
    results = []
    for *arguments, part in DIFFERENT.values():
        results += [(message(loss, *arguments[rank]), part) for loss in (SupConLossOut(), pml.NTXentLoss())]
    results += [(message(new_loss(rank), EMBEDDINGS, LABELS), part) for new_loss, part in OPTIONS.values()]
    for more, part in REFERENCES.values():
        results.append((message(pml.NTXentLoss(), EMBEDDINGS[:, 0], LABELS, **more(rank)), part))
    results += [(message_of_function(**more(rank)), part) for more, part in KEYWORDS.values()]
    memory, queue = CrossBatchMemory(SupConLossOut(), 3, 16), QueueLoss(SupConLossOut(), 3, 16)
    keys = {"keys": EMBEDDINGS} if rank else {}
    part = "keys: None on rank 0, rows (2, 3) torch.float32 on rank 1"
    results.append((message(queue, EMBEDDINGS, LABELS, **keys), part))
    if rank:
        memory(EMBEDDINGS[:, 0], LABELS)
        queue(EMBEDDINGS, LABELS)
    results.append((message(memory, EMBEDDINGS[:, 0], LABELS), "state=[4, 0]"))
    results.append((message(queue, EMBEDDINGS, LABELS), "state=[8, 8, 1]"))
    part = "rank 0: Expected no `indices_tuple` with several processes"
    results.append((message(SupConLossOut(), EMBEDDINGS, LABELS, indices_tuple=(LABELS,) * 3), part))
    mined = GlobalBatchLoss(SupConLossOut(), miner=BrokenMiner())
    with pytest.raises(ValueError, match="rank 0: Expected `labels` with a `miner`"):
        mined(EMBEDDINGS)
    with pytest.raises(RuntimeError, match="rank 0: KeyError: 'of the miner'"):
        mined(EMBEDDINGS, LABELS)
    return results, GlobalBatchLoss(SupConLossOut())(EMBEDDINGS, LABELS)


def test_differences_and_errors_are_raised_on_every_process(tmp_path):
    (zero, value_0), (one, value_1) = run_processes(work, 2, tmp_path)
    assert len(zero) == len(one) == 2 * len(DIFFERENT) + len(OPTIONS) + len(REFERENCES) + len(KEYWORDS) + 4
    for text, part in (*zero, *one):
        assert part in text
    assert value_0 == value_1 > 0  # the processes continue after errors


def lose_one(rank, port, folder, how):
    """Lose rank 2 between two losses; save the errors of the other ranks, and their seconds."""
    torch.set_num_threads(1)
    address = {"init_method": f"tcp://127.0.0.1:{port}", "rank": rank, "world_size": 3}
    dist.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE_S), **address)
    group = dist.new_group(timeout=timedelta(seconds=TIMEOUT_S))
    dist.barrier()  # all have started: from here on they wait for each other at most until the time-out
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
    if rank == 0:  # it hosts the store that the others read
        wait_for(Path(folder) / "1")


def wait_for(file):
    """Wait until a file exists."""
    started = time.monotonic()
    while not file.exists() and time.monotonic() - started < PATIENCE_S:
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_the_others_within_the_time_out(tmp_path, how):
    """The others begin the next loss when the process has ended or stopped.

    On a busy machine another process may also be too slow to answer; it is then named beside the stopped one.
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
        took, text = torch.load(tmp_path / str(rank))
        named = "rank 2 was lost" if how == signal.SIGKILL else f"rank ({1 - rank}, )?2 does not answer"
        assert re.search(named, text), text
        assert took < PATIENCE_S
