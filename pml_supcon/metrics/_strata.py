"""Parts of labelled rows with every label in its share."""

from numbers import Integral

import numpy as np

from pml_supcon.metrics._inputs import Labels


def hold_out(labels: Labels, share: float, seed: int) -> tuple[Labels, Labels]:
    """Divide row numbers into those that are fitted and those held out, about ``share`` of each label.

    Every label keeps a fitted row, so that one with a single row is never held out.

    Raises:
        ValueError: If the share leaves no row to hold out, or none to fit for a label.
    """
    _, sizes = np.unique(labels, return_counts=True)
    count, most = round(share * len(labels)), int((sizes - 1).sum())
    if not 0 < count <= most:
        raise ValueError(
            f"Expected argument `held_out` to leave rows to score, and one row of each label to fit, but {share:g} of "
            f"{len(labels)} rows are {count}, of {most} that can be held out ({len(sizes)} labels)."
        )
    held = draw_rows(labels, count, np.random.default_rng(seed), at_least=0, leave=1)
    return np.setdiff1d(np.arange(len(labels)), held), held


def draw_rows(labels: Labels, count: int, rng: np.random.Generator, *, at_least: int, leave: int = 0) -> Labels:
    """Draw ``count`` row numbers, in rising order, every label in its share by the largest remainder.

    Each label gives ``at_least`` rows or more, and keeps ``leave`` rows or more. The caller sees to it that ``count``
    allows for both.
    """
    _, places, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    quota = _quotas(sizes, count, at_least, sizes - leave)
    order = rng.permutation(len(labels))
    order = order[np.argsort(places[order], kind="stable")]  # by label, in random order within each
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < np.repeat(quota, sizes)])


def _quotas(sizes: Labels, count: int, low: int, high: Labels) -> Labels:
    exact = sizes * (count / sizes.sum())
    quota: Labels = np.clip(np.floor(exact).astype(np.int64), low, high)
    while (left := count - int(quota.sum())) != 0:
        step = 1 if left > 0 else -1
        free = np.flatnonzero(quota < high if step > 0 else quota > low)
        furthest = np.argsort(-step * (exact - quota)[free], kind="stable")
        quota[free[furthest[: abs(left)]]] += step
    return quota


def check_share(value: float, name: str, *, whole: bool = False) -> None:
    """Raise unless ``value`` is a number above 0 and below 1, or 1 where the ``whole`` is a share."""
    if not isinstance(value, int | float | np.number) or isinstance(value, bool):
        raise TypeError(f"Expected argument `{name}` to be a number, but got {value!r}.")
    if not (0 < value < 1 or (whole and value == 1)):
        wanted = "above 0 and at most 1" if whole else "between 0 and 1"
        raise ValueError(f"Expected argument `{name}` to be {wanted}, but got {value!r}.")


def check_seed(value: int) -> None:
    """Raise unless ``value`` is an integer, at least 0."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"Expected argument `seed` to be an integer, but got {value!r}.")
    if value < 0:
        raise ValueError(f"Expected argument `seed` to be at least 0, but got {value!r}.")
