"""The replay buffer: equal shares of all classes, uniform draws, its state, and additions that are refused."""

import json

import pytest
import torch

from pml_supcon.data.replay import ReplayBuffer, check_buffer


def stream(tasks, each=20):
    """Yield the indices and labels of tasks: `each` samples of every class, from the index 1,000 times the label on."""
    for classes in tasks:
        yield (
            torch.cat([torch.arange(each) + 1000 * label for label in classes]),
            torch.tensor([label for label in classes for _ in range(each)]),
        )


@pytest.mark.parametrize("size", [5, 6, 7, 11, 13, 20, 50, 200])
@pytest.mark.parametrize("tasks", [[(0, 1), (2, 3), (4,)], [(4, 3, 2), (0,), (1,)]])
def test_classes_have_equal_shares(size, tasks):
    buffer = ReplayBuffer(size, seed=3)
    for indices, labels in stream(tasks):
        before = set(buffer.indices.tolist())
        old = set(buffer.counts())
        buffer.add(indices, labels)
        counts, held = buffer.counts(), buffer.indices.tolist()
        assert set(counts) == old | set(labels.tolist())
        assert len(buffer) == len(held) == len(set(held)) == min(size, 20 * len(counts))
        assert max(counts.values()) - min(counts.values()) <= 1
        assert all(index in before for index in held if index // 1000 in old)  # old classes shrink, nothing comes back
        assert all(counts[label] == sum(index // 1000 == label for index in held) for label in counts)


def test_a_class_with_few_samples_keeps_them_all():
    buffer = ReplayBuffer(10)
    buffer.add(torch.arange(12), torch.tensor([0] * 2 + [1] * 10))
    assert buffer.counts() == {0: 2, 1: 5}


def test_samples_are_drawn_uniformly_at_every_task():
    drawn, seeds = torch.zeros(5000), 400
    for seed in range(seeds):
        buffer = ReplayBuffer(8, seed=seed)
        for indices, labels in stream([(0, 1), (2, 3)], each=10):
            buffer.add(indices, labels)
        drawn[buffer.indices] += 1
    shares = torch.cat([drawn[1000 * label : 1000 * label + 10] for label in range(4)]) / seeds
    # Each sample is in the buffer with probability 2 / 10; the standard error of a share is 0.02.
    assert (shares - 0.2).abs().max() < 0.09
    assert float(shares.mean()) == pytest.approx(0.2)


def test_the_draw_depends_on_the_seed_alone():
    def filled(seed):
        buffer = ReplayBuffer(7, seed=seed)
        for indices, labels in stream([(0, 1), (2,)]):
            torch.rand(seed + 1)
            buffer.add(indices, labels)
        return buffer.indices.tolist()

    assert filled(0) == filled(0)
    assert filled(0) != filled(1)


def test_a_restored_buffer_goes_on_alike():
    (first, second), buffer = stream([(0, 1), (2, 3)]), ReplayBuffer(9, seed=2)
    buffer.add(*first)
    restored = ReplayBuffer(9, seed=2)
    restored.load_state_dict(json.loads(json.dumps(buffer.state_dict())))
    for each in (buffer, restored):
        each.add(*second)
    assert restored.state_dict() == buffer.state_dict()
    with pytest.raises(ValueError, match="a buffer with size=8, but got 9"):
        ReplayBuffer(8, seed=2).load_state_dict(buffer.state_dict())
    with pytest.raises(ValueError, match="a buffer with seed=1, but got 2"):
        ReplayBuffer(9, seed=1).load_state_dict(buffer.state_dict())


def test_additions_that_are_refused():
    buffer = ReplayBuffer(3)
    first, second = stream([(0, 1), (2, 3)])
    buffer.add(*first)
    with pytest.raises(ValueError, match=r"classes that the buffer does not have, but got \[1\]"):
        buffer.add(torch.tensor([7]), torch.tensor([1]))
    with pytest.raises(ValueError, match="--buffer_size to be at least 4, a sample of each class"):
        buffer.add(*second)
    check_buffer(3, 3)
    with pytest.raises(ValueError, match="--buffer_size to be at least 4"):
        check_buffer(3, 4)
