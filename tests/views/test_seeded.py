"""SeededDataset: the same views for any number of workers and after a resume; the global generators do not change."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.samplers.multi_view_batch_sampler import SeededBatch
from pml_supcon.views import MultiViewDataset, MultiViewTensorDataset, SeededDataset, augmentation

IMAGES = torch.randint(0, 256, (22, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(22) % 3
AUGMENT = augmentation("stacked_randaugment", 8, mean=[0.5], std=[0.5], family="digits")


DATASETS = {
    "in memory": SeededDataset(MultiViewTensorDataset(IMAGES, LABELS, AUGMENT)),
    "one by one": SeededDataset(MultiViewDataset(list(zip(IMAGES, LABELS, strict=True)), AUGMENT)),
}


def sampler():
    return MultiViewBatchSampler(LABELS, batch_size=6, seed=5)


def loader(kind, batches, workers=0):
    options = {"multiprocessing_context": "fork", "persistent_workers": True} if workers else {}
    collate = SeededDataset.collate
    return DataLoader(DATASETS[kind], batch_sampler=batches, num_workers=workers, collate_fn=collate, **options)


def epochs(kind, workers=0, numbers=(0, 1)):
    """Return all batches of some epochs."""
    batches, found = sampler(), []
    loaded = loader(kind, batches, workers)
    for number in numbers:
        batches.set_epoch(number)
        found += [(views.clone(), labels.clone()) for views, labels in loaded]
    return found


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def states():
    return torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()


def assert_states(before):
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


@pytest.mark.parametrize("kind", DATASETS)
def test_any_number_of_workers_returns_the_same_batches(kind):
    alone = epochs(kind)
    assert [tuple(views.shape) for views, _ in alone[:4]] == [(6, 2, 1, 8, 8)] * 3 + [(4, 2, 1, 8, 8)]
    for workers in (1, 2):
        torch.manual_seed(workers)  # earlier draws do not matter
        assert_same(epochs(kind, workers), alone)


@pytest.mark.parametrize("kind", DATASETS)
def test_views_samples_and_epochs_have_separate_draws(kind):
    views = torch.cat([views for views, _ in epochs(kind)]).flatten(0, 1).flatten(1)
    assert len(views.unique(dim=0)) == len(views) == 2 * 2 * 22


@pytest.mark.parametrize("kind", DATASETS)
def test_the_rest_of_an_epoch_is_the_same_after_a_resume(kind):
    whole = epochs(kind, numbers=(1,))
    broken, later = sampler(), sampler()
    broken.set_epoch(1)
    running = iter(loader(kind, broken))
    taken = [next(running) for _ in range(2)]
    torch.rand(100)  # other draws in between
    later.load_state_dict(broken.state_dict(batches_done=2))
    assert_same([*map(tuple, taken), *map(tuple, loader(kind, later))], whole)


def test_generators_are_restored_also_when_a_transform_fails():
    before = states()
    for data in DATASETS.values():
        data.__getitems__(SeededBatch([3, 1], (0, 0)))
        assert_states(before)

    def failing(images):
        torch.rand(3)
        raise OSError("broken image")

    data = SeededDataset(MultiViewTensorDataset(IMAGES, LABELS, failing))
    with pytest.raises(OSError, match="broken image"):
        data.__getitems__(SeededBatch([0], (0,)))
    assert_states(before)


def test_the_batch_draws_by_its_seed():
    data = SeededDataset(MultiViewTensorDataset(IMAGES, LABELS, lambda images: torch.rand(len(images), 1, 1, 1)))
    batch = SeededBatch([3, 1, 2], (7, 7))
    views, labels = data.__getitems__(batch)
    drawn = torch.rand(6, generator=torch.Generator().manual_seed(batch.seed))
    assert torch.equal(views[:, 0].flatten(), drawn[:3])
    assert torch.equal(views[:, 1].flatten(), drawn[3:])
    assert torch.equal(labels, LABELS[[3, 1, 2]])


def test_batches_without_a_seed_are_rejected():
    data = DATASETS["in memory"]
    assert len(data) == 22
    with pytest.raises(TypeError, match=r"Expected batches with a `seed`, as .* but got list"):
        next(iter(DataLoader(data, batch_size=4, collate_fn=data.collate)))


class Seeds(list):
    """A batch with any seed."""

    def __init__(self, seed):
        super().__init__([0])
        self.seed = seed


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**5000], ids=["2^64", "-2^63-1", "10^5000"])
def test_a_seed_has_64_bits(seed):
    data = DATASETS["in memory"]
    for least_or_most in (2**64 - 1, -(2**63)):
        data.__getitems__(Seeds(least_or_most))
    with pytest.raises(ValueError, match=r"a `seed` of 64 bits, but got an integer of .* bits"):
        data.__getitems__(Seeds(seed))


def test_a_seed_is_an_integer():
    with pytest.raises(TypeError, match="Expected batches with a `seed`"):
        DATASETS["in memory"].__getitems__(Seeds(True))


@pytest.mark.parametrize(
    "device", [10**30, "no such", "\ud800", object()], ids=["10^30", "name", "surrogate", "object"]
)
def test_the_device_is_known_to_torch(device):
    with pytest.raises(ValueError, match="Expected argument `device` to be a device of torch, but got "):
        SeededDataset([(IMAGES[0], 0)], device)
