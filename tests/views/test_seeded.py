"""SeededDataset: the same views for any number of workers and after a break; nobody else's generator is touched."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.samplers.seeded_batch import SeededBatch
from pml_supcon.views import MultiViewDataset, MultiViewTensorDataset, SeededDataset, augmentation

IMAGES = torch.randint(0, 256, (22, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(22) % 3
AUGMENT = augmentation("stacked_randaugment", 8, mean=[0.5], std=[0.5], family="digits")


class Pairs(torch.utils.data.Dataset):
    """Images one by one."""

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return IMAGES[index], int(LABELS[index])


def dataset(kind):
    if kind == "in memory":
        return SeededDataset(MultiViewTensorDataset(IMAGES, LABELS, AUGMENT, 2))
    return SeededDataset(MultiViewDataset(Pairs(), AUGMENT, 2))


def sampler():
    return MultiViewBatchSampler(LABELS, batch_size=6, seed=5)


def loader(kind, batches, workers=0):
    options = {"multiprocessing_context": "fork", "persistent_workers": True} if workers else {}
    data = dataset(kind)
    return DataLoader(data, batch_sampler=batches, num_workers=workers, collate_fn=data.collate, **options)


def epochs(kind, workers=0, numbers=(0, 1)):
    """All batches of some epochs."""
    batches, found = sampler(), []
    loaded = loader(kind, batches, workers)
    for number in numbers:
        batches.set_epoch(number)
        found += [(views.clone(), labels.clone()) for views, labels in loaded]
    return found


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(x, y) for pair in zip(one, other, strict=True) for x, y in zip(*pair, strict=True)
    )


def states():
    return torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()


def assert_states(before):
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


@pytest.mark.parametrize("kind", ["in memory", "one by one"])
def test_any_number_of_workers_makes_the_same_batches(kind):
    alone = epochs(kind)
    assert [tuple(views.shape) for views, _ in alone[:4]] == [(6, 2, 1, 8, 8)] * 3 + [(4, 2, 1, 8, 8)]
    for workers in (1, 2):
        torch.manual_seed(workers)  # what was drawn before does not matter
        assert same(epochs(kind, workers), alone)


@pytest.mark.parametrize("kind", ["in memory", "one by one"])
def test_views_samples_and_epochs_are_drawn_apart(kind):
    first = epochs(kind, numbers=(0,))
    assert same(first, epochs(kind, numbers=(0,)))
    views = torch.cat([views for views, _ in epochs(kind)]).flatten(0, 1).flatten(1)
    assert len(views.unique(dim=0)) == len(views) == 2 * 2 * 22


@pytest.mark.parametrize("kind", ["in memory", "one by one"])
def test_the_rest_of_an_epoch_is_the_same_after_a_break(kind):
    whole = epochs(kind, numbers=(1,))
    broken, later = sampler(), sampler()
    broken.set_epoch(1)
    running = iter(loader(kind, broken))
    taken = [next(running) for _ in range(2)]
    torch.rand(100)  # whatever happens meanwhile
    later.load_state_dict(broken.state_dict(batches_done=2))
    assert same([*taken, *loader(kind, later)], whole)


@pytest.mark.parametrize("kind", ["in memory", "one by one"])
def test_generators_stay_as_they_were(kind):
    data, batch = dataset(kind), SeededBatch([3, 1], (0, 0))
    before = states()
    data.__getitems__(batch)
    assert_states(before)


def test_generators_stay_as_they_were_when_a_transform_fails():
    def failing(images):
        torch.rand(3)
        raise OSError("broken image")

    data = SeededDataset(MultiViewTensorDataset(IMAGES, LABELS, failing))
    before = states()
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


@pytest.mark.parametrize("batch", [[1, 2], (1, 2), torch.tensor([1, 2])])
def test_a_batch_without_a_seed_is_refused(batch):
    with pytest.raises(TypeError, match=rf"Expected batches with a `seed`, as .* but got {type(batch).__name__}"):
        dataset("in memory").__getitems__(batch)


def test_a_loader_that_draws_batches_itself_is_refused():
    data = dataset("in memory")
    with pytest.raises(TypeError, match="Expected batches with a `seed`"):
        next(iter(DataLoader(data, batch_size=4, collate_fn=data.collate)))


def test_length_is_that_of_the_images():
    assert len(dataset("in memory")) == len(dataset("one by one")) == 22
