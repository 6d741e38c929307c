"""MultiViewBatchSampler in one process: its promises on many random settings, epochs, states and errors."""

import logging
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, trainers
from torch.utils.data import DataLoader, TensorDataset

from pml_supcon.samplers import MultiViewBatchSampler

LONG_TAIL = np.repeat(np.arange(30), np.maximum(1, 120 // (np.arange(30) + 1)))  # 120, 60, 40, ... of 30 classes
MODES = [{"max_per_class": 3}, {"samples_per_class": 4}, {}]


def expected_left_out(counts, batch_size, *, drop_last, max_per_class=None, samples_per_class=None):
    """Count batch by batch, with none of the closed forms of the source."""
    unit = samples_per_class or 1
    cap = 1 if samples_per_class else max_per_class or sum(counts)
    units, size = [n // unit for n in counts], batch_size // unit
    full = 0
    while sum(min(n, cap * (full + 1)) for n in units) >= size * (full + 1):
        full += 1
    used = size * full if drop_last else sum(min(n, cap * (full + 1)) for n in units)
    return sum(counts) - unit * used


def random_settings(number, seed):
    rng = np.random.default_rng(seed)
    while number:
        counts = np.minimum(rng.zipf(1.6, rng.integers(2, 25)), 60)
        mode = rng.integers(3)
        if mode == 0:
            cap = int(rng.integers(1, 6))
            most, options = np.minimum(counts, cap).sum(), {"max_per_class": cap}
        elif mode == 1:
            group = int(rng.integers(1, 5))
            most, options = (counts >= group).sum(), {"samples_per_class": group}
        else:
            most, options = counts.sum(), {}
        if most:
            batch_size = int(rng.integers(1, most + 1)) * options.get("samples_per_class", 1)
            labels = rng.permutation(np.repeat(rng.permutation(1000)[: len(counts)] - 500, counts))
            number -= 1
            yield labels, batch_size, {**options, "drop_last": bool(rng.integers(2)), "seed": int(rng.integers(99))}


def test_promises_hold_on_many_random_settings():
    for labels, batch_size, options in random_settings(300, seed=0):
        sampler = MultiViewBatchSampler(labels, batch_size, **options)
        counts = list(Counter(labels.tolist()).values())
        for epoch in range(2):
            assert sampler.epoch == epoch
            batches = list(sampler)
            used = [index for batch in batches for index in batch]
            assert all(type(index) is int for index in used)
            assert len(batches) == len(sampler)
            assert len(set(used)) == len(used)
            assert len(labels) - len(used) == sampler.left_out
            keys = ("drop_last", "max_per_class", "samples_per_class")
            assert sampler.left_out == expected_left_out(
                counts, batch_size, **{k: options[k] for k in keys if k in options}
            )
            sizes = [len(batch) for batch in batches]
            assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
            assert 0 < sizes[-1] <= batch_size
            assert sizes[-1] == batch_size or not options["drop_last"]
            for batch in batches:
                present = Counter(labels[batch].tolist())
                if "samples_per_class" in options:
                    assert set(present.values()) == {options["samples_per_class"]}
                assert max(present.values()) <= options.get("max_per_class", batch_size)


@pytest.mark.parametrize("options", MODES)
def test_epochs_differ_and_come_again(options):
    sampler = MultiViewBatchSampler(LONG_TAIL, 24, seed=5, **options)
    epochs = [list(sampler) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1]
    assert list(sampler) == epochs[2]
    assert list(MultiViewBatchSampler(LONG_TAIL, 24, seed=5, **options)) == epochs[0]
    assert list(MultiViewBatchSampler(LONG_TAIL, 24, seed=6, **options)) != epochs[0]


@pytest.mark.parametrize("options", [{"max_per_class": 3}, {"samples_per_class": 4}, {"drop_last": True}])
def test_every_sample_is_left_out_now_and_then(options):
    sampler = MultiViewBatchSampler(LONG_TAIL, 24, **options)
    assert sampler.left_out > 0
    used = Counter(index for _ in range(60) for batch in sampler for index in batch)
    frequent = np.flatnonzero(LONG_TAIL == 0)
    times = np.array([used[i] for i in frequent])
    assert times.min() > 0
    assert times.max() < 60 or "drop_last" in options
    # Each sample of the class has the same chance.
    chance = times.mean() / 60
    assert np.abs(times - times.mean()).max() < 5 * max(1.0, (60 * chance * (1 - chance)) ** 0.5)


def together(sampler, epochs, n):
    pairs = np.zeros((n, n))
    for _ in range(epochs):
        for batch in sampler:
            pairs[np.ix_(batch, batch)] += 1
    return pairs[np.triu_indices(n, 1)]


@pytest.mark.parametrize("options", [{}, {"max_per_class": 8}])
def test_pairs_meet_as_often_as_in_a_plain_shuffle(options):
    # 8 batches of 8 from 64 samples: a pair meets with probability 7/63. Classes of 4 are smaller than the number of
    # batches, so dealing them out evenly would never let two of a class meet.
    epochs, chance = 900, 7 / 63
    labels = np.repeat(np.arange(16), 4)
    met = together(MultiViewBatchSampler(labels, 8, **options), epochs, 64)
    deviations = (met - epochs * chance) / (epochs * chance * (1 - chance)) ** 0.5
    assert np.abs(deviations).max() < 5  # of 2016 pairs
    assert deviations.std() == pytest.approx(1, abs=0.1)
    same = (labels[:, None] == labels)[np.triu_indices(64, 1)]
    assert abs(deviations[same].mean()) < 4 / same.sum() ** 0.5


def test_groups_of_p_x_k_are_cut_anew_and_classes_meet_by_chance():
    labels = np.repeat(np.arange(8), 8)
    sampler = MultiViewBatchSampler(labels, 8, samples_per_class=2)
    epochs = 900
    met = together(sampler, epochs, 64)
    same = (labels[:, None] == labels)[np.triu_indices(64, 1)]
    partners = epochs / 7  # every epoch gives a sample one partner of seven
    assert np.abs(met[same] - partners).max() < 5 * partners**0.5
    others = epochs * 6 / 56  # and six of the 56 samples of other classes
    assert np.abs(met[~same] - others).max() < 5 * others**0.5


def test_no_place_in_the_epoch_is_special():
    # Class 0 has 18 samples for 13 full batches of at most 2: dealt in order, the last batches would hold more of it.
    labels = np.repeat(np.arange(10), [18] + [4] * 9)
    sampler = MultiViewBatchSampler(labels, 4, max_per_class=2)
    epochs = 600
    held = np.array([[(labels[b] == 0).sum() for b in list(sampler)[:13]] for _ in range(epochs)])
    mean = held.mean(axis=0)
    assert np.abs(mean - mean.mean()).max() < 4 * held.std() / epochs**0.5


def test_batches_are_shuffled_inside():
    sampler = MultiViewBatchSampler(np.repeat(np.arange(50), 8), 40, samples_per_class=8)
    assert all(np.abs(np.diff(np.array(batch) // 8)).astype(bool).sum() > 15 for batch in sampler)


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("batch_size", [24, 28])
def test_ranks_share_each_batch(options, batch_size):
    for replicas in (1, 2, 3, 8, 24):
        whole = MultiViewBatchSampler(LONG_TAIL, batch_size, **options)
        ranks = [
            MultiViewBatchSampler(LONG_TAIL, batch_size, num_replicas=replicas, rank=r, **options)
            for r in range(replicas)
        ]
        assert len({len(rank) for rank in ranks}) == 1
        for _ in range(2):
            planned = list(whole)
            parts = [list(rank) for rank in ranks]
            assert all(len(part) == len(ranks[0]) for part in parts)
            for batch, *shares in zip(planned, *parts, strict=False):
                assert all(shares)
                assert sorted(index for share in shares for index in share) == sorted(batch)
            dropped = sum(len(batch) for batch in planned[len(ranks[0]) :])
            assert dropped < replicas
            assert all(rank.left_out == whole.left_out + dropped for rank in ranks)


def test_the_last_batch_is_smaller_or_left_out_if_it_has_fewer_samples_than_processes():
    assert len(MultiViewBatchSampler(range(11), 4, num_replicas=3)) == 3
    sampler = MultiViewBatchSampler(range(11), 4, num_replicas=4, rank=3)
    assert (len(sampler), sampler.left_out) == (2, 3)
    assert [len(batch) for batch in sampler] == [1, 1]
    (batch,) = MultiViewBatchSampler([0, 1, 2], 8)  # a data set smaller than a batch
    assert sorted(batch) == [0, 1, 2]


@pytest.mark.parametrize("options", [*MODES, {"drop_last": True}])
def test_resuming_anywhere_equals_going_on(options):
    def new():
        return MultiViewBatchSampler(LONG_TAIL, 24, seed=1, **options)

    straight = new()
    length = len(straight)
    expected = [batch for _ in range(3) for batch in straight]
    assert len(expected) == 3 * length
    for stop in range(length + 1):
        first = new()
        list(first)
        run = iter(first)
        list(islice(run, stop))
        state = first.state_dict()
        resumed = new()
        resumed.load_state_dict(state)
        assert len(resumed) == length
        assert resumed.state_dict() == state
        rest = list(resumed) + (list(resumed) if stop < length else [])
        assert rest == expected[length + stop :]


def test_resuming_with_another_number_of_processes():
    sampler = MultiViewBatchSampler(range(11), 4)
    planned = [list(sampler), list(sampler)]
    sampler.set_epoch(0)
    run = iter(sampler)
    next(run), next(run)
    half = MultiViewBatchSampler(range(11), 4, num_replicas=2, rank=1)
    half.load_state_dict(sampler.state_dict())
    assert list(half) == [planned[0][2][1::2]]
    # With four processes the last batch of 3 is left out, so that the epoch is over.
    quarter = MultiViewBatchSampler(range(11), 4, num_replicas=4, rank=1)
    quarter.load_state_dict(sampler.state_dict())
    assert quarter.epoch == 1
    assert list(quarter) == [batch[1::4] for batch in planned[1][:2]]


def test_batches_done_says_what_was_used_of_what_was_fetched():
    data = TensorDataset(torch.arange(len(LONG_TAIL)))

    def new():
        return MultiViewBatchSampler(LONG_TAIL, 24, max_per_class=3)

    expected = [batch for sampler in [new()] for _ in range(2) for batch in sampler]
    sampler = new()
    length = len(sampler)
    for stop in (1, length - 2, length - 1, length):
        sampler.set_epoch(1)
        sampler.set_epoch(0)
        run = iter(DataLoader(data, batch_sampler=sampler, num_workers=1, prefetch_factor=3))
        used = [next(run)[0].tolist() for _ in range(stop)]
        assert used == expected[:stop]
        state = sampler.state_dict(batches_done=stop)
        del run
        assert state["epoch"] == (stop == length)
        if stop < length - 3:
            assert sampler.state_dict()["batches_done"] > stop
        resumed = new()
        resumed.load_state_dict(state)
        assert list(resumed) + (list(resumed) if stop < length else []) == expected[stop:]
    with pytest.raises(ValueError, match=f"`batches_done` to be at most {length}, as many as epoch 0 has yielded"):
        sampler.state_dict(length + 1)


def test_an_iteration_that_is_broken_off_starts_again():
    sampler = MultiViewBatchSampler(range(20), 4)
    first = next(iter(sampler))
    assert next(iter(sampler)) == first
    assert sampler.state_dict()["batches_done"] == 1
    state = sampler.state_dict()
    sampler.load_state_dict(state)
    second = next(iter(sampler))
    assert second != first
    assert next(iter(sampler)) == second  # again from the loaded place


def test_who_counts_batches_still_gets_the_next_epoch():
    # The last batch is taken and no more asked for.
    sampler = MultiViewBatchSampler(range(20), 4)
    epochs = [list(sampler), list(sampler)]
    sampler.set_epoch(0)
    assert list(islice(iter(sampler), 5)) == epochs[0]
    assert list(islice(iter(sampler), 5)) == epochs[1]


def test_an_epoch_set_during_an_iteration_holds_for_the_next():
    sampler = MultiViewBatchSampler(range(20), 4)
    with pytest.raises(ValueError, match="`epoch` to be at least 0, but got -1"):
        sampler.set_epoch(-1)
    for done, _ in enumerate(sampler):
        if done == 1:
            sampler.set_epoch(7)
    assert sampler.epoch == 7
    sampler.set_epoch(0)
    list(sampler)
    sampler.set_epoch(0)  # the same once more
    assert sampler.state_dict()["epoch"] == 0
    list(sampler)
    sampler.set_epoch(1)
    assert sampler.state_dict(0) == {**sampler.state_dict(), "epoch": 1, "batches_done": 0}


def test_discarding_a_loaded_place_is_said(caplog):
    sampler = MultiViewBatchSampler(range(20), 4)
    sampler.set_epoch(3)
    next(iter(sampler))
    state = sampler.state_dict()
    sampler.load_state_dict(state)
    sampler.set_epoch(3)
    assert sampler.state_dict() == state
    assert not caplog.records
    sampler.set_epoch(0)
    (record,) = caplog.records
    assert "set_epoch(0) discards the loaded state: epoch 3 after 1 batches" in record.getMessage()


def test_a_state_survives_torch_save(tmp_path):
    sampler = MultiViewBatchSampler(LONG_TAIL, np.int64(24), max_per_class=np.int64(3), seed=np.int32(2))
    torch.save(sampler.state_dict(), tmp_path / "state.pt")
    sampler.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


def test_states_of_other_settings_are_refused():
    state = MultiViewBatchSampler(LONG_TAIL, 24, max_per_class=3).state_dict()
    changed = LONG_TAIL.copy()
    changed[[0, -1]] = changed[[-1, 0]]
    for labels, options, difference in [
        (LONG_TAIL, {"max_per_class": 3, "seed": 1}, "seed=0 instead of 1"),
        (LONG_TAIL, {"max_per_class": 2}, "max_per_class=3 instead of 2"),
        (LONG_TAIL, {"samples_per_class": 2}, "max_per_class=3 instead of None, samples_per_class=None instead of 2"),
        (LONG_TAIL, {"max_per_class": 3, "drop_last": True}, "drop_last=False instead of True"),
        (changed, {"max_per_class": 3}, "labels="),
    ]:
        with pytest.raises(ValueError, match=difference):
            MultiViewBatchSampler(labels, 24, **options).load_state_dict(state)
    with pytest.raises(ValueError, match="batch_size=24 instead of 25"):
        MultiViewBatchSampler(LONG_TAIL, 25, max_per_class=3).load_state_dict(state)
    sampler = MultiViewBatchSampler(LONG_TAIL + 7, 24, max_per_class=3)  # the same classes under other numbers
    sampler.load_state_dict(state)
    with pytest.raises(ValueError, match=r"Expected a state with epoch, batches_done and settings, .*\['epoch'\]"):
        sampler.load_state_dict({"epoch": 1})
    with pytest.raises(ValueError, match="Expected batches_done to be at most"):
        sampler.load_state_dict({**state, "batches_done": 100})
    with pytest.raises(ValueError, match="`epoch` to be at least 0, but got -1"):
        sampler.load_state_dict({**state, "epoch": -1})


def test_one_warning_says_what_is_left_out_and_why(caplog):
    labels = [0] * 20 + [1] * 5 + [2] * 5
    with caplog.at_level(logging.WARNING, logger="pml_supcon"):
        capped = MultiViewBatchSampler(labels, 4, max_per_class=2, drop_last=True)
        grouped = MultiViewBatchSampler(labels, 4, samples_per_class=2)
        MultiViewBatchSampler(labels, 4, max_per_class=2, drop_last=True, num_replicas=2, rank=1)
        MultiViewBatchSampler(labels, 10)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    # Five batches hold 10 + 5 + 5 = 20, all full; six would hold 22. 30 - 22 = 8 find no place, 2 are the sixth.
    assert capped.left_out == 10
    assert "10 of 30 samples in each epoch, drawn anew: 0 in incomplete groups, 8 of classes" in messages[0]
    assert messages[0].endswith("2 in the last, smaller batch.")
    # 10, 2 and 2 groups: four batches hold 4 + 2 + 2 = 8, all full; the fifth has one group.
    assert grouped.left_out == 30 - 2 * 9
    assert "12 of 30 samples in each epoch, drawn anew: 2 in incomplete groups, 10 of classes" in messages[1]


def test_labels_of_every_kind_give_the_same_batches():
    expected = list(MultiViewBatchSampler(LONG_TAIL.tolist(), 24, max_per_class=3))
    for labels in (LONG_TAIL, LONG_TAIL.astype(np.uint64), torch.tensor(LONG_TAIL, dtype=torch.int8)):
        assert list(MultiViewBatchSampler(labels, 24, max_per_class=3)) == expected


SINGLE = [0] * 9 + [1]


@pytest.mark.parametrize(
    ("labels", "arguments", "error", "message"),
    [
        ([], {}, ValueError, r"`labels` to be 1-D and not empty, but got shape \(0,\)"),
        ([[0, 1]], {}, ValueError, r"1-D and not empty, but got shape \(1, 2\)"),
        ([0.0, 1.0], {}, TypeError, "`labels` to be integers, but got dtype float64"),
        (torch.tensor([True, False]), {}, TypeError, "`labels` to be integers, but got dtype bool"),
        ([0] * 9, {"batch_size": 0}, ValueError, "`batch_size` to be at least 1, but got 0"),
        ([0] * 9, {"batch_size": 2.0}, TypeError, "`batch_size` to be an integer, but got 2.0"),
        ([0] * 9, {"max_per_class": 0}, ValueError, "`max_per_class` to be at least 1, but got 0"),
        ([0] * 9, {"samples_per_class": -1}, ValueError, "`samples_per_class` to be at least 1, but got -1"),
        ([0] * 9, {"seed": -1}, ValueError, "`seed` to be at least 0, but got -1"),
        ([0] * 9, {"max_per_class": 1, "samples_per_class": 2}, ValueError, "at most one of .*, but got 1 and 2"),
        ([0] * 9, {"samples_per_class": 3}, ValueError, "to be a multiple of samples_per_class=3, but got 4"),
        (SINGLE, {"max_per_class": 2}, ValueError, "at most 3, .* max_per_class=2 .* 2 classes of 1 .*, but got 4"),
        (SINGLE, {"samples_per_class": 2}, ValueError, "at most 2, .* samples_per_class=2 .* 1 classes of 2 .*got 4"),
        ([0] * 9, {"num_replicas": 5}, ValueError, "`batch_size` to be at least num_replicas=5, but got 4"),
        ([0] * 9, {"num_replicas": 2, "rank": 2}, ValueError, "`rank` to be below num_replicas=2, but got 2"),
        ([0] * 9, {"rank": -1}, ValueError, "`rank` to be at least 0, but got -1"),
        ([0] * 3, {"drop_last": True}, ValueError, "one batch at least, but got 3 labels with batch_size=4"),
        ([0] * 3, {"num_replicas": 4}, ValueError, "one batch at least, but got 3 labels with batch_size=4"),
    ],
)
def test_wrong_arguments_raise(labels, arguments, error, message):
    with pytest.raises(error, match=message):
        MultiViewBatchSampler(labels, **{"batch_size": 4, **arguments})


def test_the_trainer_of_pytorch_metric_learning_uses_it():
    torch.manual_seed(0)
    labels = torch.arange(5).repeat_interleave(6)
    data = TensorDataset(torch.cat([torch.arange(30.0)[:, None], torch.randn(30, 3)], dim=1), labels)
    sampler = MultiViewBatchSampler(labels, 10, samples_per_class=2, drop_last=True)
    seen = []
    trunk = torch.nn.Linear(4, 4)
    trunk.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][:, 0].int().tolist()))
    trainer = trainers.MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), 0.01)},
        batch_size=10,
        loss_funcs={"metric_loss": losses.SupConLoss()},
        dataset=data,
        sampler=sampler,
        dataloader_num_workers=0,
        data_device="cpu",
    )
    trainer.train(num_epochs=2)
    trainer.train(start_epoch=3, num_epochs=3)  # builds its loader anew
    same = MultiViewBatchSampler(labels, 10, samples_per_class=2, drop_last=True)
    assert seen == [batch for _ in range(3) for batch in same]
