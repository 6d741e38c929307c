"""The classes of the batches, compared with maximum flow and with probability theory."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow

from pml_supcon.samplers.capped_batches import _draw, count_batches, draw_batches


def most_units(units, *, batches, size, cap):
    """Return the most units that any schedule can hold: a maximum flow.

    Its edges are source -> class (capacity: its units) -> batch (cap) -> sink (size).
    """
    classes = len(units)
    graph = np.zeros((classes + batches + 2,) * 2, dtype=np.int32)
    graph[0, 1 : classes + 1] = units
    graph[1 : classes + 1, classes + 1 : -1] = cap
    graph[classes + 1 : -1, -1] = size
    return maximum_flow(csr_matrix(graph), 0, classes + batches + 1).flow_value


def random_problems(number, seed):
    rng = np.random.default_rng(seed)
    for _ in range(number):
        classes = int(rng.integers(1, 13))
        kind = rng.integers(3)
        if kind == 0:  # even
            units = rng.integers(0, 12, classes)
        elif kind == 1:  # long tail
            units = np.minimum(rng.zipf(1.5, classes), 80)
        else:  # one large class
            units = np.append(rng.integers(0, 4, classes), rng.integers(20, 60))
        yield units, int(rng.integers(1, 13)), int(rng.integers(1, 6))


def test_no_schedule_has_more_full_batches_or_units():
    smaller = none = 0
    for units, size, cap in random_problems(400, seed=0):
        full, rest = count_batches(units, size=size, cap=cap)
        assert 0 <= rest < size
        # One more batch holds no more than this, so neither can it be full nor can the last one be larger.
        assert most_units(units, batches=full + 1, size=size, cap=cap) == full * size + rest
        if full:
            assert most_units(units, batches=full, size=size, cap=cap) == full * size
        smaller, none = smaller + (rest > 0), none + (full == 0)
    assert smaller > 50
    assert none > 20  # the edge cases occur


def test_every_problem_gets_all_its_batches_within_the_cap():
    rng = np.random.default_rng(1)
    for units, size, cap in random_problems(2000, seed=2):
        full, rest = count_batches(units, size=size, cap=cap)
        before = units.copy()
        batches = list(draw_batches(units, size=size, cap=cap, rng=rng))
        assert [int(b.sum()) for b in batches] == ([rest] if rest else []) + [size] * full
        assert all(b.min() >= 0 and b.max() <= cap for b in batches)
        assert (sum(batches, np.zeros_like(units)) <= units).all()
        assert (units == before).all()


def test_without_a_choice_every_batch_has_the_cap_of_each_class():
    batches = list(draw_batches(np.array([6, 6, 6]), size=6, cap=2, rng=np.random.default_rng(0)))
    assert [b.tolist() for b in batches] == [[2, 2, 2]] * 3


def test_a_batch_without_limit_is_hypergeometric():
    # 12 units of class 0 and 28 others, 10 drawn first: mean 3, variance 10 * .3 * .7 * 30/39.
    rng, runs = np.random.default_rng(3), 4000
    first = [next(draw_batches(np.array([12, 20, 8]), size=10, cap=10, rng=rng))[0] for _ in range(runs)]
    variance = 10 * 0.3 * 0.7 * 30 / 39
    assert abs(np.mean(first) - 3) < 4 * (variance / runs) ** 0.5
    assert np.var(first) == pytest.approx(variance, rel=0.1)


def test_draws_above_the_cap_are_replaced_at_random():
    # Oracle: walk through a shuffled row of 6 a, 2 b, 2 c and skip units above the cap of 1, until the batch has 2.
    # Many batches follow, so no unit must be in this one.
    tokens = np.repeat([0, 1, 2], [6, 2, 2])
    rng, runs = np.random.default_rng(4), 20000
    walked = np.zeros(3)
    for _ in range(runs):
        row = rng.permutation(tokens)
        walked[row[0] + next(int(t) for t in row if t != row[0]) - 1] += 1  # ab, ac, bc
    drawn = np.zeros(3)
    for _ in range(runs):
        a, b = np.flatnonzero(_draw(np.array([6, 2, 2]), 2, cap=1, later=10, rng=rng))
        drawn[a + b - 1] += 1
    assert np.abs(walked - drawn).max() < 4 * (2 * runs * 0.25) ** 0.5
    # Exactly: P(bc) = 2/10 * 2/8 + 2/10 * 2/8.
    assert drawn[2] / runs == pytest.approx(0.1, abs=4 * (0.09 / runs) ** 0.5)
