"""SeededBatch: a list whose seed depends on its place alone, and is kept by copies."""

import copy
import pickle

import pytest
import torch

from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.samplers.multi_view_batch_sampler import SeededBatch


def batches(epoch, **options):
    sampler = MultiViewBatchSampler([0, 1, 2] * 8, **{"batch_size": 5} | options)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_it_is_a_list_whose_seed_depends_on_the_place_alone():
    batch = SeededBatch(iter([4, 2, 7]), (0, 1))
    assert batch == [4, 2, 7]
    assert isinstance(batch, list)
    assert batch.seed == SeededBatch([], (0, 1)).seed != SeededBatch([], (1, 0)).seed
    assert SeededBatch([], (0, 0, 1, 0, 1)).seed == 2079905632492480820  # resumed runs rely on it in every version


def test_seeds_are_spread_over_their_range():
    seeds = [SeededBatch([], (0, epoch, batch)).seed for epoch in range(50) for batch in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):  # 2500 draws of a fair coin: 6 deviations of 25
        assert abs(sum(seed >> bit & 1 for seed in seeds) - 1250) < 150
    torch.manual_seed(max(seeds))  # in the range that PyTorch accepts


@pytest.mark.parametrize("copied", [copy.copy, lambda batch: pickle.loads(pickle.dumps(batch))])
def test_copies_and_workers_keep_the_seed(copied):
    batch = SeededBatch([4, 2], (0, 1))
    again = copied(batch)
    assert (again, again.seed, type(again)) == (batch, batch.seed, SeededBatch)


def test_batches_of_all_epochs_seeds_and_ranks_have_different_seeds():
    drawn = [batch.seed for seed in (0, 1) for epoch in range(3) for batch in batches(epoch, seed=seed)]
    drawn += [batch.seed for rank in (0, 1) for batch in batches(0, batch_size=6, num_replicas=2, rank=rank)]
    assert len(set(drawn)) == 2 * 3 * 5 + 2 * 4
    assert [batch.seed for batch in batches(2)] == drawn[10:15]


def test_seeds_continue_after_a_resume():
    whole = [(list(batch), batch.seed) for batch in batches(2)]
    first, second = (MultiViewBatchSampler([0, 1, 2] * 8, 5) for _ in range(2))
    first.set_epoch(2)
    running = iter(first)
    taken = [next(running) for _ in range(3)]
    second.load_state_dict(first.state_dict(batches_done=2))  # one more was fetched than used
    assert [(list(batch), batch.seed) for batch in [*taken[:2], *second]] == whole


def test_slices_and_sums_have_seeds_of_their_own():
    batch = SeededBatch(range(8), (0, 1))
    first, second, joined = batch[:4], batch[4:], batch + batch[:2]
    assert (first, second, joined) == ([0, 1, 2, 3], [4, 5, 6, 7], [*range(8), 0, 1])
    assert len({batch.seed, first.seed, second.seed, joined.seed}) == 4
    assert first.seed == SeededBatch(range(8), (0, 1))[:4].seed
    assert type(batch[2]) is int


@pytest.mark.parametrize("process", [0, 1])
def test_accelerate_splits_seeded_batches(process):
    from accelerate.data_loader import BatchSamplerShard

    sampler = MultiViewBatchSampler([0, 1, 2] * 8, 10)
    shard = BatchSamplerShard(sampler, 2, process, split_batches=True)
    parts = list(shard)
    assert [len(part) for part in parts] == [5, 5, 5]  # the last, smaller batch is filled up
    other = list(BatchSamplerShard(sampler, 2, 1 - process, split_batches=True))
    assert len({part.seed for part in [*parts, *other]}) == 6
