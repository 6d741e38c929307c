"""The highest of many scores, and triplets in parts, so that memory never holds all N^3."""

from collections.abc import Iterator
from fractions import Fraction

import torch
from torch import Tensor


def number_of(share: float, number: int, most: int | None) -> int:
    """Return ``ceil(share * number)``, at most ``most``: at least one unless ``number`` is 0."""
    # exact, from the decimal that the user wrote: 0.07 of 100 is 7, but 8 in floats
    chosen = -int(-Fraction(str(share)) * number // 1)
    return chosen if most is None else min(chosen, most)


def highest(scores: Tensor, number: int) -> Tensor:
    """Return the indices of the ``number`` highest scores, descending, ties by index (``torch.topk`` takes any)."""
    return scores.argsort(descending=True, stable=True)[:number]


class RunningHighest:
    """The ``number`` highest of scores that arrive in parts, with their items; the first of equal scores.

    Parts are buffered, and sorted only when the buffer exceeds ``room`` (at least ``number``) scores. Scores that
    do not exceed the lowest of the ``number`` highest so far are dropped at once.
    """

    def __init__(self, number: int, room: int) -> None:
        self.number = number
        self.room = max(number, room)
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._waiting = 0
        self._lowest: Tensor | None = None

    def add(self, scores: Tensor, items: Tensor) -> None:
        """Add scores ``(T,)`` and their items ``(k, T)``."""
        if self._lowest is not None:
            keep = ~(scores <= self._lowest)  # NaN counts as highest, as in a sort
            scores, items = scores[keep], items[:, keep]
        self._parts.append((scores, items))
        self._waiting += len(scores)
        if self._waiting > self.room:
            self._merge()

    def items(self) -> Tensor:
        """Return the items of the highest scores, ``(k, number)``, highest first; call ``add`` at least once before."""
        self._merge()
        return self._parts[0][1]

    def _merge(self) -> None:
        scores = torch.cat([scores for scores, _ in self._parts])
        items = torch.cat([items for _, items in self._parts], dim=1)
        order = highest(scores, self.number)
        self._parts = [(scores[order], items[:, order])]
        self._waiting = 0
        if len(order) == self.number:
            self._lowest = scores[order[-1]]


def triplets(
    pos_anchors: Tensor, positives: Tensor, neg_anchors: Tensor, negatives: Tensor, *, anchors: int, pairs_a_part: int
) -> Iterator[Tensor]:
    """Yield all triplets in parts ``(3, T)``: anchors, positives, negatives, in ascending order.

    A part holds the triplets of ``pairs_a_part`` positive pairs. Pairs are sorted by anchor.
    """
    # (anchors,): the number of negatives of each anchor, and the index of its first one
    count = torch.bincount(neg_anchors, minlength=anchors)
    start = count.cumsum(0) - count
    for a, p in zip(pos_anchors.split(pairs_a_part), positives.split(pairs_a_part), strict=True):
        # (T,): each triplet's pair, repeated for all negatives of its anchor, and its place among these negatives
        of_pair = torch.repeat_interleave(torch.arange(len(a), device=a.device), count[a])
        first = count[a].cumsum(0) - count[a]
        place = torch.arange(len(of_pair), device=a.device) - first[of_pair]
        yield torch.stack([a[of_pair], p[of_pair], negatives[start[a][of_pair] + place]])
