"""The classes of the batches, compared with maximum flow and with probability theory."""

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow

from pml_supcon.samplers.epoch_planner import _draw, count_batches, draw_batches


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


def test_draws_above_the_cap_are_replaced_at_random():
    # Of 6 a, 2 b, 2 c with a cap of 1, a batch of 2: draw one unit, then draw until it is of another class. P(ab) =
    # P(ac) = 6/10 * 1/2 + 2/10 * 6/8, and P(bc) = 2 * 2/10 * 2/8. Many batches follow: no unit must be in this one.
    rng, runs = np.random.default_rng(4), 20000
    drawn = np.zeros(3)
    for _ in range(runs):
        a, b = np.flatnonzero(_draw(np.array([6, 2, 2]), 2, cap=1, later=10, rng=rng))
        drawn[a + b - 1] += 1  # ab, ac, bc
    assert np.abs(drawn / runs - [0.45, 0.45, 0.1]).max() < 4 * (0.25 / runs) ** 0.5
