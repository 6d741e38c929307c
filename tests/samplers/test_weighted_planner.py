"""Draws of classes by weight: the weights, the shares of the classes, limits, and turns within a class."""

import math

import numpy as np
import pytest

from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.samplers.weighted_planner import class_weights, draw_units

COUNTS = np.array([100, 40, 12, 5, 3])
LABELS = np.repeat(np.arange(5), COUNTS)


def mean_counts(epochs, batch_size=20, **options):
    """Return the mean samples of each class in a full batch, and the largest standard error."""
    sampler = MultiViewBatchSampler(LABELS, batch_size, **options)
    drawn = [np.bincount(LABELS[b], minlength=5) for _ in range(epochs) for b in sampler if len(b) == batch_size]
    return np.mean(drawn, axis=0), np.std(drawn, axis=0).max() / len(drawn) ** 0.5


@pytest.mark.parametrize("beta", [0.1, 0.9, 0.999, 1 - 1e-12])
def test_weights_are_samples_over_their_effective_number(beta):
    expected = [n / math.fsum(beta**j for j in range(n)) for n in COUNTS]  # E(n) = 1 + beta + ... + beta^(n - 1)
    assert class_weights(COUNTS, beta) == pytest.approx(expected, rel=1e-9)


def test_weights_lie_between_a_uniform_and_a_balanced_draw():
    assert class_weights(COUNTS, 1e-9) == pytest.approx(COUNTS)
    assert class_weights(COUNTS, 1 - 1e-15) == pytest.approx(np.ones(5))
    assert class_weights(np.array([0, 3]), None).tolist() == [0, 1]
    assert class_weights(np.array([0, 3]), 0.5)[0] == 0


@pytest.mark.parametrize("beta", [None, 0.5, 0.98])
def test_a_unit_is_drawn_by_the_weight_of_its_class(beta):
    rng, runs, weights = np.random.default_rng(0), 4000, class_weights(COUNTS, beta)
    drawn = sum(draw_units(weights, np.full(5, 50), 10, rng) for _ in range(runs))
    expected = weights / weights.sum()
    assert np.abs(drawn / (10 * runs) - expected).max() < 5 * (0.25 / (10 * runs)) ** 0.5


def test_draws_above_the_most_are_drawn_again():
    # Two of three classes with weights 2, 1, 1: P(not the first) = 2 * 1/4 * 1/3.
    rng, runs = np.random.default_rng(1), 20000
    missing = np.mean([draw_units(np.array([2.0, 1, 1]), np.ones(3, int), 2, rng)[0] == 0 for _ in range(runs)])
    assert abs(missing - 1 / 6) < 4 * (1 / 6 / runs) ** 0.5


def test_balanced_batches_have_as_many_of_each_class():
    # P x K: three of the five classes, or of the four with 4 samples
    for k, classes in ((3, 5), (4, 4)):
        mean, error = mean_counts(400, 3 * k, draw="class_balanced", samples_per_class=k)
        assert mean[:classes] == pytest.approx(np.full(classes, 3 * k / classes), abs=5 * error)
    # without a limit: 1/5 of 10 draws is below the samples of every class but the last two
    mean, error = mean_counts(400, 10, draw="class_balanced")
    assert mean[:3] == pytest.approx(np.full(3, mean[:3].mean()), abs=6 * error)
    assert mean[4] > 8 * 10 * 3 / 160  # a uniform draw has 3/160 of the last class
    # a limit of 4 for 20 draws leaves no choice but 3 of the last class
    mean, _ = mean_counts(3, 19, draw="class_balanced", max_per_class=4)
    assert mean.tolist() == [4, 4, 4, 4, 3]


def test_the_effective_number_is_between_uniform_and_balanced():
    balanced, _ = mean_counts(100, draw="class_balanced")
    uniform, _ = mean_counts(100)
    effective, _ = mean_counts(100, draw="effective_number", beta=0.95)
    assert uniform[0] > effective[0] + 1 > balanced[0] + 2
    assert uniform[4] < effective[4] - 0.2 < balanced[4] - 0.4


@pytest.mark.parametrize("options", [{}, {"samples_per_class": 3}, {"max_per_class": 5}])
def test_a_class_gives_its_samples_in_turn_and_none_twice_in_a_batch(options):
    sampler = MultiViewBatchSampler(LABELS, 12, draw="class_balanced", **options)
    for _ in range(20):
        batches = list(sampler)
        assert [len(b) for b in batches] == [12] * 13 + [3 if "samples_per_class" in options else 4]
        assert all(len(set(b)) == len(b) for b in batches)
        times = np.bincount(np.concatenate(batches), minlength=160)
        for c in range(5):
            assert np.ptp(times[c == LABELS]) <= 1
        for batch in batches:
            present = np.bincount(LABELS[batch], minlength=5)
            if "samples_per_class" in options:
                assert set(present) <= {0, 3}
            assert present.max() <= options.get("max_per_class", 12)


def test_the_samples_of_a_frequent_class_are_drawn_anew_each_epoch():
    sampler = MultiViewBatchSampler(LABELS, 12, draw="class_balanced")
    times = np.bincount(np.concatenate([batch for _ in range(100) for batch in sampler]), minlength=160)[LABELS == 0]
    assert np.abs(times - times.mean()).max() < 5 * times.mean() ** 0.5


def test_classes_too_small_for_a_group_are_counted_and_never_drawn(caplog):
    sampler = MultiViewBatchSampler(LABELS, 12, draw="class_balanced", samples_per_class=4)
    assert sampler.left_out == 3
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "leaves out 3 of 160 samples in every epoch: they are of classes with fewer than 4 samples."
    )
    assert 4 not in LABELS[np.concatenate(list(sampler))]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"draw": "balanced"}, ValueError, "`draw` to be one of .*'balanced'; did you mean 'class_balanced'"),
        ({"draw": "effective_number"}, ValueError, r"`beta` to be in \(0, 1\) with draw='effective_n.*, but got None"),
        ({"draw": "effective_number", "beta": 1}, ValueError, r"`beta` to be in \(0, 1\), but got 1"),
        ({"draw": "effective_number", "beta": "0.9"}, TypeError, "`beta` to be a number, but got '0.9'"),
        ({"beta": 0.9}, ValueError, "no `beta` unless draw='effective_number', but got 0.9 with 'uniform'"),
        ({"draw": "class_balanced", "max_per_class": 2}, ValueError, "at most 10, .* max_per_class=2 .*, but got 12"),
        ({"draw": "class_balanced", "samples_per_class": 6}, ValueError, "at most 18, .* 3 classes of 6 .* got 24"),
    ],
)
def test_wrong_draws_raise(arguments, error, message):
    with pytest.raises(error, match=message):
        MultiViewBatchSampler(LABELS, 24 if "samples_per_class" in arguments else 12, **arguments)
