"""SeededBatch: a list of indices whose seed follows from its place alone, and stays with it."""

import copy
import pickle

import pytest
import torch

from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.samplers.seeded_batch import SeededBatch


def batches(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def sampler(**options):
    return MultiViewBatchSampler([0, 1, 2] * 8, **{"batch_size": 5} | options)


def test_it_is_a_list_of_its_indices():
    batch = SeededBatch(iter([4, 2, 7]), (0, 1))
    assert batch == [4, 2, 7]
    assert isinstance(batch, list)
    assert torch.as_tensor(batch).tolist() == [4, 2, 7]


def test_seed_follows_from_the_place_alone():
    assert SeededBatch([4, 2], (0, 1)).seed == SeededBatch([], (0, 1)).seed
    assert SeededBatch([], (0, 1)).seed != SeededBatch([], (1, 0)).seed


def test_seeds_are_the_same_in_every_version():
    """Runs that go on after an update rely on it."""
    assert SeededBatch([], (0, 0, 1, 0, 1)).seed == 2079905632492480820


def test_seeds_are_spread_over_their_range():
    seeds = [SeededBatch([], (0, epoch, batch)).seed for epoch in range(50) for batch in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):  # 2500 draws of a fair coin: 6 deviations of 25
        assert abs(sum(seed >> bit & 1 for seed in seeds) - 1250) < 150
    torch.manual_seed(max(seeds))  # which takes them


@pytest.mark.parametrize("copied", [copy.copy, lambda batch: pickle.loads(pickle.dumps(batch))])
def test_copies_and_workers_keep_the_seed(copied):
    batch = SeededBatch([4, 2], (0, 1))
    again = copied(batch)
    assert (again, again.seed, type(again)) == (batch, batch.seed, SeededBatch)


def test_every_batch_of_a_sampler_has_a_seed_of_its_own():
    one, two, other = sampler(), sampler(), sampler(seed=1)
    seeds = [[batch.seed for batch in batches(one, epoch)] for epoch in range(3)]
    assert seeds == [[batch.seed for batch in batches(two, epoch)] for epoch in range(3)]
    others = [batch.seed for epoch in range(3) for batch in batches(other, epoch)]
    assert len({seed for drawn in [*seeds, others] for seed in drawn}) == 2 * 3 * 5


def test_processes_draw_apart():
    seeds = [batch.seed for rank in (0, 1) for batch in batches(sampler(batch_size=6, num_replicas=2, rank=rank), 0)]
    assert len(set(seeds)) == 2 * 4


def test_seeds_go_on_in_the_middle_of_an_epoch():
    whole = [(list(batch), batch.seed) for batch in batches(sampler(), 2)]
    first, second = sampler(), sampler()
    first.set_epoch(2)
    running = iter(first)
    taken = [next(running) for _ in range(3)]
    second.load_state_dict(first.state_dict(batches_done=2))  # one more was fetched than used
    left = list(second)
    assert [(list(batch), batch.seed) for batch in [*taken[:2], *left]] == whole
