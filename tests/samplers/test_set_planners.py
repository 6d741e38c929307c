"""Batches over label sets: groups that share a label, the limit of each label, and weighted draws of labels."""

from itertools import pairwise

import numpy as np
import pytest
from helpers.rich_labels import SETS, long_tailed_sets

from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.samplers.set_draw_planner import OpenBatch, Queue
from pml_supcon.samplers.set_group_planner import cut_into_groups


def new(sets, batch_size, **options):
    return MultiViewBatchSampler(sets, batch_size, labels_are="sets", **options)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_groups_share_a_label_until_no_label_has_enough_samples(k):
    for seed in range(10):
        sets = long_tailed_sets(150 + seed, 12, seed)
        groups = cut_into_groups(*np.nonzero(sets), len(sets), k, np.random.default_rng(seed))
        assert groups.shape == (len(sets) // k, k)
        assert len(np.unique(groups)) == groups.size
        shared = sets[groups].all(axis=1).any(axis=1)
        # from the first group on that shares none, no label has k samples
        rest = groups[np.argmin(shared) :] if not shared.all() else groups[:0]
        assert k == 1 or sets[rest.ravel()].sum(axis=0).max(initial=0) < k
        assert shared.sum() >= len(sets) // k - (12 * (k - 1) + (~sets.any(axis=1)).sum()) // k - 1


def test_all_samples_come_up_also_those_without_labels():
    sets = SETS.copy()
    sets[:7] = False
    for options in ({"samples_per_class": 3}, {"max_per_class": 12}, {}):
        sampler = new(sets, 24, **options)
        used = [np.concatenate(list(sampler)) for _ in range(10)]
        assert set(np.concatenate(used)) == set(range(200))
        assert "max_per_class" in options or all(len(set(u)) == len(u) == 200 - sampler.left_out for u in used)
    balanced = new(sets, 24, draw="class_balanced", samples_per_class=4)
    assert set(range(200)) == {i for _ in range(60) for b in balanced for i in b}


def test_the_remainder_is_drawn_anew():
    lonely = np.zeros((5, 1), bool)
    lonely[:4] = True  # a sample without labels is left over no more often than the others
    sampler = new(lonely, 4, samples_per_class=4)
    assert sampler.left_out == 1
    missed = [next(iter({0, 1, 2, 3, 4} - set(batch))) for _ in range(500) for batch in sampler]
    assert np.abs(np.bincount(missed, minlength=5) - 100).max() < 5 * 80**0.5


def test_a_sample_takes_part_for_each_of_its_labels():
    sets = np.array([[1, 1]] + [[1, 0]] * 7 + [[0, 1]] * 8, dtype=bool)
    sampler = new(sets, 2, samples_per_class=2)
    partners = [sum(batch) for _ in range(400) for batch in sampler if 0 in batch]
    first = np.mean([partner < 8 for partner in partners])
    assert abs(first - 0.5) < 0.2  # not always the first label
    assert len(set(partners)) == 15


@pytest.mark.parametrize("draw", ["uniform", "class_balanced"])
def test_no_label_exceeds_its_limit_and_batches_are_full(draw):
    for seed in range(6):
        sets = long_tailed_sets(120, 15, seed)
        for limit in (1, 3, 10):
            with pytest.raises(ValueError, match=f"`batch_size` to be at most .* max_per_class={limit} .* got 121"):
                new(sets, 121, max_per_class=limit, draw=draw)
            size = {1: 5, 3: 9, 10: 27}[limit]
            sampler = new(sets, size, max_per_class=limit, draw=draw)
            for _ in range(3):
                batches = list(sampler)
                assert [len(b) for b in batches] == [size] * (120 // size) + [120 % size] * bool(120 % size)
                assert all(len(set(b)) == len(b) and sets[b].sum(axis=0).max() <= limit for b in batches)


def test_batches_of_all_places_in_the_epoch_have_the_same_labels_on_average():
    # Under a limit samples of a frequent label wait, so that batches drawn late have more of them.
    frequent = np.eye(2, 1, dtype=bool)[np.repeat([0, 1], [300, 100])]
    for sets, sampler in [
        (SETS, new(SETS, 20, samples_per_class=4)),
        (frequent, new(frequent, 8, max_per_class=6)),
    ]:
        number = np.array([[sets[batch].sum() for batch in sampler] for _ in range(200)])
        mean = number.mean(axis=0)  # labels in a batch, by place
        assert np.abs(mean - mean.mean()).max() < 5 * number.std() / 200**0.5


def test_a_limit_that_never_binds_uses_each_sample_once():
    used = np.concatenate(list(new(SETS, 24, max_per_class=24)))
    assert sorted(used) == list(range(200))


def test_samples_come_again_only_where_no_unused_one_fits():
    # 60 samples of label 0 and 20 of label 1, batches of 8 with at most 4 of a label: 10 batches of 4 and 4
    sets = np.eye(2, dtype=bool)[np.repeat([0, 1], [60, 20])]
    times = np.bincount(np.concatenate(list(new(sets, 8, max_per_class=4))), minlength=80)
    assert times[:60].sum() == times[60:].sum() == 40
    assert times[:60].max() == 1
    assert set(times[60:]) == {2}


def test_a_batch_without_a_fitting_sample_takes_those_with_most_labels():
    # The second sample alone fills both of its labels; the first and the third fit together.
    sets = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]], dtype=bool)
    batch = OpenBatch(sets, 1)
    Queue(np.array([1, 0, 2])).fill(batch, 2)
    assert batch.samples == [1]
    sampler = new(sets, 2, max_per_class=1, drop_last=True)
    assert {tuple(sorted(batch)) for _ in range(20) for batch in sampler} == {(0, 2)}


def test_a_queue_gives_what_it_left_out_first():
    sets = np.eye(2, dtype=bool)[[0, 0, 0, 1, 1, 1]]
    queue, batches = Queue(np.arange(6)), []
    for _ in range(3):
        batch = OpenBatch(sets, 1)
        queue.fill(batch, 2)
        batches.append(batch.samples)
    assert batches == [[0, 3], [1, 4], [2, 5]]


def test_labels_are_drawn_by_weight():
    # Disjoint sets are classes: each of three labels and the samples without one has a quarter of a batch.
    sets = np.eye(4, 3, dtype=bool)[np.repeat(np.arange(4), [120, 40, 20, 20])]
    for options in ({}, {"samples_per_class": 4}, {"max_per_class": 12}):
        sampler = new(sets, 16, draw="class_balanced", **options)
        drawn = [
            np.r_[sets[b].sum(axis=0), (~sets[b].any(axis=1)).sum()] for _ in range(100) for b in list(sampler)[:12]
        ]
        assert np.mean(drawn, axis=0) == pytest.approx(np.full(4, 4), abs=0.5)
        if "samples_per_class" in options:
            assert set(np.ravel(drawn)) <= {0, 4, 8, 12, 16}
    low = new(sets, 16, draw="effective_number", beta=1e-6)  # in proportion to the samples
    share = np.mean([sets[b, 0].mean() for _ in range(60) for b in low])
    assert share == pytest.approx(0.6, abs=0.05)


def test_a_label_gives_its_samples_in_turn():
    sets = np.eye(2, dtype=bool)[np.repeat([0, 1], [30, 10])]
    times = np.bincount(np.concatenate(list(new(sets, 8, draw="class_balanced"))), minlength=40)
    assert np.ptp(times[:30]) <= 1
    assert np.ptp(times[30:]) <= 2  # a sample in the batch is passed over


def test_groups_of_weighted_draws_share_a_label():
    sampler = new(SETS, 24, draw="class_balanced", samples_per_class=3)
    batches = [batch for _ in range(5) for batch in sampler if len(batch) == 24]
    assert all(len(set(batch)) == 24 for batch in batches)
    assert all(a != b for a, b in pairwise(batches))
    labelled = SETS.any(axis=1)
    share = np.mean([has_positive(SETS[batch])[labelled[batch]].mean() for batch in batches])
    assert share > 0.95


def has_positive(sets):
    shared = sets.astype(int) @ sets.T
    np.fill_diagonal(shared, 0)
    return shared.any(axis=1)


@pytest.mark.parametrize("options", [{}, {"samples_per_class": 2}, {"max_per_class": 1}, {"draw": "class_balanced"}])
def test_samples_without_any_label_make_batches(options):
    assert sorted(np.concatenate(list(new(np.zeros((6, 2), bool), 6, **options)))) == list(range(6))
