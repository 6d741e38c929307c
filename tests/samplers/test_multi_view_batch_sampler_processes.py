"""MultiViewBatchSampler in two real processes (gloo), by its own sharding and by accelerate's."""

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.process_groups import free_port, run_processes
from helpers.rich_labels import RICH
from torch.utils.data import DataLoader, TensorDataset

from pml_supcon.samplers import MultiViewBatchSampler

LABELS = np.repeat(np.arange(12), np.arange(4, 28, 2))  # 180 samples
OPTIONS = {"batch_size": 16, "max_per_class": 2, "drop_last": True, "seed": 3}


def planned(epoch):
    sampler = MultiViewBatchSampler(LABELS, **OPTIONS)
    sampler.set_epoch(epoch)
    return list(sampler)


def gathered(batches):
    """Return the batches of both processes, `[process][step]`."""
    parts = [None, None]
    dist.all_gather_object(parts, batches)
    return parts


def own_sharding(rank):
    sampler = MultiViewBatchSampler(LABELS, num_replicas=2, rank=rank, **OPTIONS)
    loader = DataLoader(TensorDataset(torch.arange(len(LABELS))), batch_sampler=sampler)
    for epoch in range(2):
        zero, one = gathered([batch.tolist() for (batch,) in loader])
        for a, b, batch in zip(zero, one, planned(epoch), strict=True):
            assert not set(a) & set(b)
            assert sorted(a + b) == sorted(batch)
    half = iter(sampler)
    next(half)
    # One process resumes the epoch of two.
    whole = MultiViewBatchSampler(LABELS, **OPTIONS)
    whole.load_state_dict(sampler.state_dict())
    assert list(whole) == planned(2)[1:]


def accelerate_sharding(split):
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=split))
    assert accelerator.num_processes == 2

    def prepared(sampler):
        return accelerator.prepare(DataLoader(TensorDataset(torch.arange(len(LABELS))), batch_sampler=sampler))

    sampler = MultiViewBatchSampler(LABELS, **OPTIONS)
    loader = prepared(sampler)

    def check(epoch, plan):
        zero, one = gathered([batch.tolist() for (batch,) in loader])
        if split:
            assert [a + b for a, b in zip(zero, one, strict=True)] == plan, epoch
        else:
            assert [batch for pair in zip(zero, one, strict=True) for batch in pair] == plan, epoch

    assert len(planned(0)) % 2 == 0
    check(0, planned(0))
    check(1, planned(1))
    assert planned(0) != planned(1)
    loader.set_epoch(7)  # reaches the sampler through the property `sampler`
    assert sampler.epoch == 7
    check(7, planned(7))

    state = sampler.state_dict(batches_done=4)
    assert state["epoch"] == 7
    sampler = MultiViewBatchSampler(LABELS, **OPTIONS)
    sampler.load_state_dict(state)
    loader = prepared(sampler)
    loader.set_epoch(sampler.epoch)
    check(7, planned(7)[4:])
    check(8, planned(8))


def own_sharding_of_every_planner(rank):
    for options in RICH:
        options = {"labels": LABELS, "batch_size": 24, "seed": 5} | options
        whole = list(MultiViewBatchSampler(**options))
        zero, one = gathered(list(MultiViewBatchSampler(**options, num_replicas=2, rank=rank)))
        for a, b, batch in zip(zero, one, whole, strict=True):
            assert len(a) - len(b) in (0, 1)
            assert sorted(a + b) == sorted(batch)
            assert not set(a) & set(b)


def both_kinds_of_sharding(rank, port):
    os.environ |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    own_sharding(rank)
    own_sharding_of_every_planner(rank)
    accelerate_sharding(split=True)
    accelerate_sharding(split=False)


def test_both_processes_together_have_the_planned_epoch(tmp_path):
    pytest.importorskip("accelerate")
    run_processes(both_kinds_of_sharding, 2, tmp_path, free_port())
