"""The plan of one epoch where a sample has a set of labels: groups of samples that share a label."""

import numpy as np

from pml_supcon.samplers.batch_shape import BatchShape
from pml_supcon.samplers.label_arrays import BoolArray, IntArray


class SetGroupPlanner:
    """A planner of epochs of groups, each of ``samples_per_class`` samples that share a label (`cut_into_groups`).

    Args:
        sets: ``(n, C)`` bool, the labels of each sample.
        shape: Size of a batch and of a group.

    Attributes:
        full: Full batches in an epoch.
        rest: Samples in the smaller batch after them, 0 where there is none.
    """

    def __init__(self, sets: BoolArray, shape: BatchShape) -> None:
        self._samples, self._labels = np.nonzero(sets)
        self._n, self._shape = len(sets), shape
        self.full, rest = divmod(len(sets) // shape.unit, shape.units)
        self.rest = rest * shape.unit

    def left_out(self, *, rest_dropped: bool) -> tuple[int, str]:
        """Return how many samples an epoch leaves out, and the reasons in words."""
        reasons = self._n % self._shape.unit, self.rest if rest_dropped else 0
        text = "in each epoch, drawn anew: %d in an incomplete group, %d in the last, smaller batch."
        return sum(reasons), text % reasons

    def plan(self, rng: np.random.Generator) -> list[IntArray]:
        """Return the indices of each batch of one epoch: the full batches, then the smaller one, if any."""
        groups = cut_into_groups(self._samples, self._labels, self._n, self._shape.unit, rng)  # (n // k, k)
        groups, units = rng.permutation(groups), self._shape.units
        return [rng.permutation(groups[at : at + units].ravel()) for at in range(0, len(groups), units)]


def cut_into_groups(samples: IntArray, labels: IntArray, n: int, k: int, rng: np.random.Generator) -> IntArray:
    """Cut n samples at random into groups of k, which share a label as far as possible.

    The first groups share one. In the last ones, of which no label has k samples, those that share one are neighbours.

    Args:
        samples: ``(S,)`` int64, the sample of each pair of a sample and a label of it.
        labels: ``(S,)`` int64, the label of each pair.
        n: Number of samples.
        k: Samples in a group.
        rng: Source of the draws.

    Returns:
        ``(n // k, k)`` int64 samples, distinct; which are left out is drawn at random.

    Examples:
        >>> pairs = np.array([0, 1, 2, 3, 3]), np.array([5, 6, 5, 6, 7])
        >>> np.sort(cut_into_groups(*pairs, n=4, k=2, rng=np.random.default_rng(0)), axis=None).tolist()
        [0, 1, 2, 3]
    """
    left = np.zeros(n, dtype=bool)
    left[rng.permutation(n)[: n // k * k]] = True
    samples, labels = samples[left[samples]], labels[left[samples]]
    # 1. each sample with labels takes part for one of them, drawn at random: (m,) samples and labels
    pairs = rng.permutation(samples.size)
    drawn, first = np.unique(samples[pairs], return_index=True)
    pieces = [whole_groups(drawn, labels[pairs[first]], k, rng)]
    # 2. of the samples left over, those of the label that most of them have: whole groups of k while there are k
    while True:
        left[pieces[-1]] = False
        samples, labels = samples[left[samples]], labels[left[samples]]
        counts = np.bincount(labels, minlength=1)
        if (most := int(counts.max())) < 2:
            break
        chosen = rng.permutation(samples[labels == counts.argmax()])
        pieces.append(chosen[: most // k * k or most])
    # 3. then the others, samples without labels among them
    return np.concatenate([*pieces, rng.permutation(np.flatnonzero(left))]).reshape(-1, k)


def whole_groups(samples: IntArray, labels: IntArray, k: int, rng: np.random.Generator) -> IntArray:
    """Return samples, ``(m,)`` with one label each, in groups of k neighbours of one label, without the remainders."""
    order = rng.permutation(samples.size)
    order = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels, minlength=1)
    place = np.arange(order.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within the label
    return samples[order[place < np.repeat(sizes // k * k, sizes)]]
