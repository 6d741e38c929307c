"""MultiViewBatchSampler in one process: its batches on many random settings, epochs, states and errors."""

import logging
from collections import Counter
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
import torch
from helpers.rich_labels import RICH, TREE
from pytorch_metric_learning import losses, trainers
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler, TensorDataset

from pml_supcon.samplers import MultiViewBatchSampler

LONG_TAIL = np.repeat(np.arange(30), np.maximum(1, 120 // (np.arange(30) + 1)))  # 120, 60, 40, ... of 30 classes
MODES = [{"max_per_class": 3}, {"samples_per_class": 4}, {}, *RICH]


def new(batch_size=24, labels=LONG_TAIL, **options):
    return MultiViewBatchSampler(labels, batch_size, **options)


def random_settings(number, seed):
    rng = np.random.default_rng(seed)
    while number:
        counts, m = np.minimum(rng.zipf(1.6, rng.integers(2, 25)), 60), int(rng.integers(1, 6))
        largest, unit, options = [
            (np.minimum(counts, m).sum(), 1, {"max_per_class": m}),
            ((counts >= m).sum(), m, {"samples_per_class": m}),
            (counts.sum(), 1, {}),
        ][rng.integers(3)]
        if largest:
            labels = rng.permutation(np.repeat(rng.permutation(1000)[: len(counts)] - 500, counts))
            number -= 1
            options |= {"drop_last": bool(rng.integers(2)), "seed": int(rng.integers(99))}
            yield labels, int(rng.integers(1, largest + 1)) * unit, options


def test_batches_are_distinct_samples_in_full_batches_within_the_limit():
    for labels, batch_size, options in random_settings(300, seed=0):
        sampler = MultiViewBatchSampler(labels, batch_size, **options)
        for epoch in range(2):
            assert sampler.epoch == epoch
            batches = list(sampler)
            used = [index for batch in batches for index in batch]
            assert all(type(index) is int for index in used)
            assert len(batches) == len(sampler)
            assert len(set(used)) == len(used) == len(labels) - sampler.left_out
            *sizes, last = [len(batch) for batch in batches]
            assert sizes == [batch_size] * len(sizes)
            assert last == batch_size or (0 < last < batch_size and not options["drop_last"])
            for batch in batches:
                present = Counter(labels[batch].tolist())
                if "samples_per_class" in options:
                    assert set(present.values()) == {options["samples_per_class"]}
                assert max(present.values()) <= options.get("max_per_class", batch_size)


@pytest.mark.parametrize("options", MODES)
def test_batches_depend_on_the_seed_and_the_epoch_alone(options):
    sampler = new(seed=5, **options)
    epochs = [list(sampler) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    sampler.set_epoch(1)
    assert [list(sampler), list(sampler)] == epochs[1:]
    assert list(new(seed=5, **options)) == epochs[0]
    assert list(new(seed=6, **options)) != epochs[0]


@pytest.mark.parametrize("options", [{"max_per_class": 3}, {"samples_per_class": 4}, {"drop_last": True}])
def test_all_samples_of_a_class_are_left_out_with_the_same_chance(options):
    sampler = new(**options)
    assert sampler.left_out > 0
    used = Counter(index for _ in range(60) for batch in sampler for index in batch)
    times = np.array([used[i] for i in np.flatnonzero(LONG_TAIL == 0)])
    assert times.min() > 0
    assert times.max() < 60 or "drop_last" in options
    chance = times.mean() / 60
    assert np.abs(times - times.mean()).max() < 5 * max(1.0, (60 * chance * (1 - chance)) ** 0.5)


def times_together(sampler, epochs, n):
    """Return how often each pair of samples shares a batch, `(n (n - 1) / 2,)`."""
    pairs = np.zeros((n, n))
    for _ in range(epochs):
        for batch in sampler:
            pairs[np.ix_(batch, batch)] += 1
    return pairs[np.triu_indices(n, 1)]


@pytest.mark.parametrize("options", [{}, {"max_per_class": 8}])
def test_pairs_share_a_batch_as_often_as_in_a_plain_shuffle(options):
    # 8 batches of 8 from 64 samples: a pair shares one with probability 7/63. A sampler that distributed the classes of
    # 4 evenly over the batches would never put two samples of a class into one batch.
    epochs, chance = 900, 7 / 63
    labels = np.repeat(np.arange(16), 4)
    met = times_together(new(8, labels, **options), epochs, 64)
    deviations = (met - epochs * chance) / (epochs * chance * (1 - chance)) ** 0.5
    assert np.abs(deviations).max() < 5  # of 2016 pairs
    assert deviations.std() == pytest.approx(1, abs=0.1)
    same = (labels[:, None] == labels)[np.triu_indices(64, 1)]
    assert abs(deviations[same].mean()) < 4 / same.sum() ** 0.5


def test_p_x_k_draws_the_groups_and_the_classes_of_a_batch_anew():
    labels, epochs = np.repeat(np.arange(8), 8), 900
    met = times_together(new(8, labels, samples_per_class=2), epochs, 64)
    same = (labels[:, None] == labels)[np.triu_indices(64, 1)]
    partners = epochs / 7  # every epoch gives a sample one partner of seven
    assert np.abs(met[same] - partners).max() < 5 * partners**0.5
    others = epochs * 6 / 56  # and six of the 56 samples of other classes
    assert np.abs(met[~same] - others).max() < 5 * others**0.5


def test_batches_of_all_places_in_the_epoch_have_the_same_classes_on_average():
    # Class 0 has 18 samples for 13 full batches of at most 2: in the order drawn, the last would hold more of it.
    labels, epochs = np.repeat(np.arange(10), [18] + [4] * 9), 600
    sampler = new(4, labels, max_per_class=2)
    number = np.array([[(labels[b] == 0).sum() for b in list(sampler)[:13]] for _ in range(epochs)])
    mean = number.mean(axis=0)
    assert np.abs(mean - mean.mean()).max() < 4 * number.std() / epochs**0.5


def test_the_order_within_a_batch_is_random():
    sampler = new(40, np.repeat(np.arange(50), 8), samples_per_class=8)
    assert all(np.abs(np.diff(np.array(batch) // 8)).astype(bool).sum() > 15 for batch in sampler)


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("batch_size", [24, 28])
def test_ranks_share_each_batch(options, batch_size):
    for replicas in (1, 3, 8, 24):
        whole = new(batch_size, **options)
        ranks = [new(batch_size, num_replicas=replicas, rank=r, **options) for r in range(replicas)]
        for _ in range(2):
            planned = list(whole)
            parts = [list(rank) for rank in ranks]
            assert {len(part) for part in parts} == {len(rank) for rank in ranks} == {len(ranks[0])}
            for batch, *shares in zip(planned, *parts, strict=False):
                assert all(shares)
                assert sorted(index for share in shares for index in share) == sorted(batch)
            dropped = sum(len(batch) for batch in planned[len(ranks[0]) :])
            assert dropped < replicas
            if "draw" not in options and not ("labels" in options and "max_per_class" in options):
                assert all(rank.left_out == whole.left_out + dropped for rank in ranks)


def test_a_data_set_smaller_than_a_batch_is_one_batch():
    (batch,) = new(8, [0, 1, 2])
    assert sorted(batch) == [0, 1, 2]


@pytest.mark.parametrize("options", [*MODES, {"drop_last": True}])
def test_resuming_after_any_batch_equals_an_uninterrupted_run(options):
    straight = new(seed=1, **options)
    length = len(straight)
    expected = [batch for _ in range(3) for batch in straight]
    assert len(expected) == 3 * length
    for stop in range(length + 1):
        first, resumed = new(seed=1, **options), new(seed=1, **options)
        list(first)
        list(islice(iter(first), stop))
        resumed.load_state_dict(first.state_dict())
        assert len(resumed) == length
        assert resumed.state_dict() == first.state_dict()
        rest = list(resumed) + (list(resumed) if stop < length else [])
        assert rest == expected[length + stop :]


def test_resuming_with_another_number_of_processes():
    sampler = new(4, range(11))
    planned = [list(sampler), list(sampler)]
    sampler.set_epoch(0)
    list(islice(iter(sampler), 2))
    half = new(4, range(11), num_replicas=2, rank=1)
    half.load_state_dict(sampler.state_dict())
    assert list(half) == [planned[0][2][1::2]]
    # With four processes the last batch of 3 is left out, so that the epoch is over.
    quarter = new(4, range(11), num_replicas=4, rank=1)
    quarter.load_state_dict(sampler.state_dict())
    assert quarter.epoch == 1
    assert list(quarter) == [batch[1::4] for batch in planned[1][:2]]


def test_batches_done_is_the_number_used_of_those_prefetched():
    data = TensorDataset(torch.arange(len(LONG_TAIL)))
    sampler = new(max_per_class=3)
    length = len(sampler)
    expected = [*sampler, *sampler]
    for stop in (1, length - 1, length):
        sampler.set_epoch(1)
        sampler.set_epoch(0)
        run = iter(DataLoader(data, batch_sampler=sampler, num_workers=1, prefetch_factor=3))
        assert [next(run)[0].tolist() for _ in range(stop)] == expected[:stop]
        state = sampler.state_dict(batches_done=stop)
        del run
        assert state["epoch"] == (stop == length)
        assert stop > 1 or sampler.state_dict()["batches_done"] > stop
        resumed = new(max_per_class=3)
        resumed.load_state_dict(state)
        assert list(resumed) + (list(resumed) if stop < length else []) == expected[stop:]
    with pytest.raises(ValueError, match=f"`batches_done` to be at most {length}, as many as epoch 0 has yielded"):
        sampler.state_dict(length + 1)


def test_an_interrupted_iteration_starts_again():
    sampler = new(4, range(20))
    first = next(iter(sampler))
    assert next(iter(sampler)) == first
    state = sampler.state_dict()
    assert state["batches_done"] == 1
    sampler.load_state_dict(state)
    second = next(iter(sampler))
    assert second != first
    assert next(iter(sampler)) == second  # again from the loaded place


def test_a_caller_that_counts_batches_gets_the_next_epoch():
    sampler = new(4, range(20))
    epochs = [list(sampler), list(sampler)]
    sampler.set_epoch(0)
    assert [list(islice(iter(sampler), 5)) for _ in range(2)] == epochs  # never requests a sixth batch


def test_an_epoch_set_during_an_iteration_is_the_next():
    sampler = new(4, range(20))
    with pytest.raises(ValueError, match="`epoch` to be at least 0, but got -1"):
        sampler.set_epoch(-1)
    for _ in sampler:
        sampler.set_epoch(7)
    assert sampler.epoch == 7
    for _ in range(2):
        sampler.set_epoch(0)
        list(sampler)
    assert sampler.state_dict() == {**sampler.state_dict(), "epoch": 1, "batches_done": 0}
    sampler.set_epoch(0)  # the same epoch once more
    assert sampler.state_dict()["epoch"] == 0


def test_discarding_a_loaded_state_warns(caplog):
    sampler = new(4, range(20))
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
    draw = {"draw": "effective_number", "beta": Fraction(9, 10)}
    sampler = new(np.int64(24), max_per_class=np.int64(3), seed=np.int32(2), **draw)
    torch.save(sampler.state_dict(), tmp_path / "state.pt")
    sampler.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


def test_states_of_other_settings_raise():
    state = new(max_per_class=3).state_dict()
    changed = LONG_TAIL.copy()
    changed[[0, -1]] = changed[[-1, 0]]
    for options, difference in [
        ({"max_per_class": 3, "seed": 1, "drop_last": True}, "drop_last=False instead of True, seed=0 instead of 1"),
        ({"samples_per_class": 2}, "max_per_class=3 instead of None, samples_per_class=None instead of 2"),
        ({"max_per_class": 3, "labels": changed}, f"got other labels of the {len(changed)} samples"),
        (
            {"max_per_class": 3, "labels": LONG_TAIL[1:]},
            f"labels of {len(changed)} samples instead of {len(changed) - 1}",
        ),
        ({"max_per_class": 3, "batch_size": 25}, "batch_size=24 instead of 25"),
        ({"max_per_class": 3, "draw": "class_balanced"}, "draw=uniform instead of class_balanced"),
        ({"max_per_class": 3, "labels": LONG_TAIL[:, None], "labels_are": "hierarchy"}, "labels_are=classes instead"),
    ]:
        with pytest.raises(ValueError, match=difference):
            new(**options).load_state_dict(state)
    older = {name: value for name, value in state["settings"].items() if name not in ("labels_are", "draw", "beta")}
    new(max_per_class=3).load_state_dict({**state, "settings": older})
    with pytest.raises(ValueError, match=r"beta=None instead of 0\.5"):
        new(max_per_class=3, draw="effective_number", beta=0.5).load_state_dict({**state, "settings": older})
    sampler = new(labels=LONG_TAIL + 7, max_per_class=3)  # the same classes with other labels
    sampler.load_state_dict(state)
    for wrong, message in [
        ({"epoch": 1}, r"`state` to have epoch, batches_done and settings, but got \['epoch'\]"),
        ({**state, "settings": {}}, "but got batch_size=None instead of 24"),
        ({**state, "batches_done": 100}, "Expected batches_done to be at most"),
        ({**state, "epoch": -1}, "`epoch` to be at least 0, but got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            sampler.load_state_dict(wrong)
    for name, wrong in [("state", None), ("state", [1]), (r"state\['settings'\]", {**state, "settings": None})]:
        with pytest.raises(TypeError, match=f"`{name}` to be a mapping"):
            sampler.load_state_dict(wrong)


def test_one_warning_gives_the_samples_left_out_and_the_reasons(caplog):
    labels = [0] * 20 + [1] * 5 + [2] * 5
    with caplog.at_level(logging.WARNING, logger="pml_supcon"):
        capped = new(4, labels, max_per_class=2, drop_last=True)
        grouped = new(4, labels, samples_per_class=2)
        new(4, labels, max_per_class=2, drop_last=True, num_replicas=2, rank=1)
        new(10, labels)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    # Five batches hold 10 + 5 + 5 = 20, all full; six would hold 22. 30 - 22 = 8 exceed the limit, 2 are the sixth.
    assert capped.left_out == 10
    assert "10 of 30 samples in each epoch, drawn anew: 0 in incomplete groups, 8 of classes" in messages[0]
    assert messages[0].endswith("2 in the last, smaller batch.")
    # 10, 2 and 2 groups: four batches hold 4 + 2 + 2 = 8, all full; the fifth has one group.
    assert grouped.left_out == 30 - 2 * 9
    assert "12 of 30 samples in each epoch, drawn anew: 2 in incomplete groups, 10 of classes" in messages[1]


def test_labels_of_every_type_give_the_same_batches():
    expected = list(new(max_per_class=3))
    for labels in (LONG_TAIL.tolist(), LONG_TAIL.astype(np.uint64), torch.tensor(LONG_TAIL, dtype=torch.int8)):
        assert list(new(labels=labels, max_per_class=3)) == expected


def test_groups_of_a_tree_share_the_finest_label_possible():
    # leaves of 6, 1, 1 and 2, 1, 1 samples under two parents; the single ones meet their siblings
    tree = np.array([[0, 0]] * 6 + [[0, 1], [0, 2]] + [[1, 3]] * 2 + [[1, 4], [1, 5]])
    for options in ({}, {"draw": "class_balanced"}):
        sampler = new(4, tree, labels_are="hierarchy", samples_per_class=2, seed=2, **options)
        assert sampler.left_out == 0
        for _ in range(5):
            for batch in sampler:
                groups = sorted(
                    tuple(sorted(index for index in batch if tree[index, 0] == parent)) for parent in (0, 1)
                )
                for group in groups:
                    assert len(group) % 2 == 0
                    assert {6, 7} <= set(group) or not {6, 7} & set(group)
                    assert {10, 11} <= set(group) or not {10, 11} & set(group)
                    assert {8, 9} <= set(group) or not {8, 9} & set(group)
        assert {6, 7, 8, 9, 10, 11} <= {index for _ in range(9) for batch in sampler for index in batch}


def test_a_limit_over_a_tree_is_of_the_finest_labels():
    sampler = new(24, TREE, labels_are="hierarchy", max_per_class=2)
    assert list(sampler) == list(new(24, TREE[:, -1], max_per_class=2))
    assert max(Counter(TREE[batch, -1].tolist()).most_common(1)[0][1] for batch in sampler) == 2


SINGLE = [0] * 9 + [1]


@pytest.mark.parametrize(
    ("labels", "arguments", "error", "message"),
    [
        ([], {}, ValueError, r"`labels` to be 1-D and not empty, but got shape \(0,\)"),
        (torch.tensor([True, False]), {}, TypeError, "`labels` to be integers, but got dtype bool"),
        (torch.zeros(9).to(torch.float8_e5m2), {}, TypeError, "`labels` to be integers, but got torch.float8_e5m2"),
        (torch.zeros(9).bfloat16(), {}, TypeError, "`labels` to be integers, but got torch.bfloat16"),
        (torch.zeros(9, dtype=torch.complex64).conj(), {}, TypeError, "to be integers, but got torch.complex64"),
        ([0] * 9, {"max_per_class": 10**5000, "samples_per_class": 1}, ValueError, "got an integer of .* bits and 1"),
        ([0] * 9, {"samples_per_class": 10**5000}, ValueError, "`samples_per_class` to be an integer of 64 bits"),
        (SequentialSampler(range(4)), {}, TypeError, "`labels` to be the labels of the samples, but got a SequentialS"),
        (DistributedSampler(range(4), 2, 0), {}, TypeError, "unless it runs with `Trainer.use_distributed_sampler=Fal"),
        ([0] * 9, {"batch_size": 0}, ValueError, "`batch_size` to be at least 1, but got 0"),
        ([0] * 9, {"max_per_class": 1, "samples_per_class": 2}, ValueError, "at most one of .*, but got 1 and 2"),
        ([0] * 9, {"samples_per_class": 3}, ValueError, "to be a multiple of samples_per_class=3, but got 4"),
        (SINGLE, {"max_per_class": 2}, ValueError, "at most 3, .* max_per_class=2 .* 2 classes of 1 .*, but got 4"),
        (SINGLE, {"samples_per_class": 2}, ValueError, "at most 2, .* samples_per_class=2 .* 1 classes of 2 .*got 4"),
        ([0] * 9, {"num_replicas": 5}, ValueError, "`batch_size` to be at least num_replicas=5, but got 4"),
        ([0] * 9, {"num_replicas": 2, "rank": 2}, ValueError, "`rank` to be below num_replicas=2, but got 2"),
        ([0] * 3, {"drop_last": True}, ValueError, "one batch at least, but got 3 labels with batch_size=4"),
    ],
)
def test_wrong_arguments_raise(labels, arguments, error, message):
    with pytest.raises(error, match=message):
        new(**{"labels": labels, "batch_size": 4, **arguments})


def test_with_the_trainer_of_pytorch_metric_learning():
    labels = torch.arange(5).repeat_interleave(6)
    data = TensorDataset(torch.cat([torch.arange(30.0)[:, None], torch.randn(30, 3)], dim=1), labels)
    sampler, same = (new(10, labels, samples_per_class=2, drop_last=True) for _ in range(2))
    batches = []
    trunk = torch.nn.Linear(4, 4)
    trunk.register_forward_hook(lambda module, inputs, output: batches.append(inputs[0][:, 0].int().tolist()))
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
    trainer.train(start_epoch=3, num_epochs=3)  # creates another loader
    assert batches == [batch for _ in range(3) for batch in same]
