"""Long-tailed label sets and trees, and the settings of the sampler over them."""

import numpy as np


def long_tailed_sets(n, labels, seed=0, *, empty=0.05):
    """Return `(n, labels)` bool: one to three labels a row, label c with weight 1 / (c + 1), some rows without."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, labels + 1)
    sets = np.zeros((n, labels), dtype=bool)
    for row in np.flatnonzero(rng.random(n) >= empty):
        sets[row, rng.choice(labels, rng.integers(1, 4), replace=False, p=weights / weights.sum())] = True
    return sets


def long_tailed_tree(n, coarse, seed=0, *, fine=10):
    """Return `(n, 3)` labels: `coarse` groups of five, of `fine` labels each, the later ones rarer."""
    rng = np.random.default_rng(seed)
    leaf = np.minimum(rng.zipf(1.3, n) - 1, coarse * 5 * fine - 1)
    return np.stack([leaf // (5 * fine), leaf // fine, leaf], axis=1)


SETS, TREE = long_tailed_sets(200, 20), long_tailed_tree(200, 3)
OVER_SETS, OVER_TREE = {"labels": SETS, "labels_are": "sets"}, {"labels": TREE, "labels_are": "hierarchy"}
BALANCED = {"draw": "class_balanced"}
EFFECTIVE = {"draw": "effective_number", "beta": 0.9}

#: Settings of every planner.
RICH = [
    BALANCED,
    EFFECTIVE | {"samples_per_class": 4},
    BALANCED | {"max_per_class": 3},
    OVER_SETS,
    OVER_SETS | {"samples_per_class": 4},
    OVER_SETS | {"max_per_class": 12},
    OVER_SETS | BALANCED | {"samples_per_class": 4},
    OVER_SETS | EFFECTIVE | {"max_per_class": 12},
    OVER_TREE | {"samples_per_class": 2},
    OVER_TREE | {"max_per_class": 4},
    OVER_TREE | BALANCED | {"samples_per_class": 2},
]
