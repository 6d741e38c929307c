"""Seeded views of two real processes (gloo) under Accelerate's loaders: the planned batches, drawn by their seeds."""

import os

import pytest
import torch
from helpers.process_groups import free_port, run_processes
from torch.utils.data import DataLoader

from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.views import MultiViewDataset, SeededDataset

LABELS = torch.arange(40) % 4
IMAGES = torch.arange(40.0).view(40, 1)
DATA = SeededDataset(MultiViewDataset(list(zip(IMAGES, LABELS, strict=True)), lambda image: image + torch.rand(1) / 2))
KINDS = {
    "split": {"split_batches": True},
    "whole": {"split_batches": False},
    "split, dispatched": {"split_batches": True, "dispatch_batches": True},
    "whole, dispatched": {"split_batches": False, "dispatch_batches": True},
}


def new_sampler(epoch=0):
    sampler = MultiViewBatchSampler(LABELS, batch_size=8, max_per_class=2, drop_last=True)
    sampler.set_epoch(epoch)
    return sampler


def expected(kind, rank, epoch):
    """Return the views and labels of process `rank` at each step, drawn here from the planned batches."""
    plan = list(new_sampler(epoch))[: 5 if "split" in kind else 4]
    if kind == "split":
        return [DATA.__getitems__(batch[4 * rank : 4 * rank + 4]) for batch in plan]
    drawn = [DATA.__getitems__(batch) for batch in plan]  # whole batches
    if kind == "split, dispatched":
        return [(views[4 * rank : 4 * rank + 4], ids[4 * rank : 4 * rank + 4]) for views, ids in drawn]
    return drawn[rank::2]


def work(rank, port):
    from accelerate import Accelerator, skip_first_batches
    from accelerate.state import AcceleratorState
    from accelerate.utils import DataLoaderConfiguration

    os.environ |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found = {}
    for kind, options in KINDS.items():
        AcceleratorState._reset_state()
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
        assert accelerator.num_processes == 2
        loader = accelerator.prepare(DataLoader(DATA, batch_sampler=new_sampler(), collate_fn=DATA.collate))
        torch.manual_seed(rank)  # earlier draws do not matter
        found[kind] = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            found[kind].append(list(loader))
        loader.set_epoch(1)
        found[kind].append(list(skip_first_batches(loader, 1 if kind == "whole" else 2)))
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    pytest.importorskip("accelerate")
    return run_processes(work, 2, tmp_path_factory.mktemp("gloo"), free_port())


@pytest.mark.parametrize("kind", KINDS)
def test_views_are_those_of_the_planned_batches(found, kind):
    for rank, batches in enumerate(found):
        for epoch in range(2):
            steps = batches[kind][epoch]
            if kind == "whole, dispatched":  # the odd batch at the end is divided
                steps = steps[:2]
            torch.testing.assert_close(steps, expected(kind, rank, epoch), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_view_is_drawn_twice(found, kind):
    views = torch.cat([views for batches in found for epoch in batches[kind][:2] for views, _ in epoch]).flatten()
    assert len(views.unique()) == len(views)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_of_an_epoch_is_the_same_after_a_resume(found, kind):
    for batches in found:
        skipped = 2 if "split" in kind else 1  # steps; of whole batches process 0 skips one for each process
        torch.testing.assert_close(batches[kind][2], batches[kind][1][skipped:], rtol=0, atol=0)
