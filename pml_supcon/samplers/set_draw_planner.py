"""The plan of one epoch where a sample has a set of labels: a limit of each label, weighted draws of labels."""

from typing import Protocol

import numpy as np

from pml_supcon.samplers.batch_shape import BatchShape
from pml_supcon.samplers.label_arrays import BoolArray, IntArray
from pml_supcon.samplers.weighted_planner import FloatArray, class_weights


class SetDrawPlanner:
    """A planner of epochs with as many draws as samples, under a limit of each label, by weights of labels, or both.

    Without weights the samples come in turn, and one that does not fit into a batch is the first of the next one. With
    weights a batch draws labels, and for each label samples that have it. Samples without labels count as samples of
    one more label, without a limit.

    Args:
        sets: ``(n, C)`` bool, the labels of each sample.
        shape: Size and limit of a batch.
        weighted: Draw labels by `class_weights`.
        beta: As in `class_weights`.

    Attributes:
        full: Full batches in an epoch.
        rest: Samples in the smaller batch after them, 0 where there is none.
    """

    def __init__(self, sets: BoolArray, shape: BatchShape, *, weighted: bool, beta: float | None) -> None:
        self._sets, self._shape = sets, shape
        self._limit = None if shape.grouped else shape.cap  # labels overlap: a group of one is no limit of others
        columns = np.concatenate([sets, ~sets.any(axis=1, keepdims=True)], axis=1)  # (n, C + 1)
        self._members = [np.flatnonzero(column) for column in columns.T] if weighted else None
        self._weights = class_weights(columns.sum(axis=0), beta)  # (C + 1,)
        # Samples with most labels first: random orders hold more, as a rule, and this one is the resort of the others.
        self._safe = OpenBatch(sets, self._limit)
        Queue(np.argsort(-sets.sum(axis=1), kind="stable")).fill(self._safe, min(shape.samples, len(sets)))
        if self._limit is not None and len(self._safe.samples) < shape.samples:
            raise ValueError(
                f"Expected argument `batch_size` to be at most {len(self._safe.samples)}, the samples that "
                f"{shape.limit} allows if those with most labels come first, but got {shape.samples}"
            )
        self.full, rest = divmod(len(sets) // shape.unit, shape.units)
        self.rest = rest * shape.unit

    def left_out(self, *, rest_dropped: bool) -> tuple[int, str]:
        """Return 0: every sample may be drawn, and how many an epoch misses is up to chance."""
        return 0, ""

    def plan(self, rng: np.random.Generator) -> list[IntArray]:
        """Return the indices of each batch of one epoch: the full batches, then the smaller one, if any."""
        source: Source = (
            Queue(rng.permutation(len(self._sets)))
            if self._members is None
            else LabelDraws([rng.permutation(m) for m in self._members], self._weights, self._shape.unit, rng)
        )
        batches = []
        for size in [self._shape.samples] * self.full + [self.rest] * bool(self.rest):
            batch = OpenBatch(self._sets, self._limit)
            source.fill(batch, size)
            samples = batch.samples if len(batch.samples) == size else self._safe.samples
            batches.append(rng.permutation(samples)[:size])
        # a queue ends with samples of the frequent labels: shuffle the full batches, as `EpochPlanner` does
        return [batches[i] for i in rng.permutation(self.full)] + batches[self.full :]


class OpenBatch:
    """A batch that is being filled.

    Args:
        sets: ``(n, C)`` bool, the labels of each sample.
        limit: Most samples of a label, or None.

    Attributes:
        samples: Samples in the batch, in order.
        closed: ``(n,)`` bool, samples that are in the batch or have a label at its limit.
        counts: ``(C,)`` samples of each label in the batch.
    """

    def __init__(self, sets: BoolArray, limit: int | None) -> None:
        self._sets, self._limit = sets, limit
        self.samples: list[int] = []
        self.closed = np.zeros(len(sets), dtype=bool)
        self.counts = np.zeros(sets.shape[1], dtype=np.int64)

    def add(self, samples: IntArray) -> None:
        """Add the first of these open, distinct samples, ``(s,)``, s >= 1, as far as they fit."""
        if self._limit is None:
            fitting = samples
        else:
            # (s, C): samples of each label after each of these; the first of them always fits
            after = self.counts + self._sets[samples].cumsum(axis=0)
            fitting = samples[(after <= self._limit).all(axis=1)]
            before, self.counts = self.counts, after[fitting.size - 1]
            reached = (before < self._limit) & (self.counts == self._limit)
            self.closed |= self._sets[:, reached].any(axis=1)
        self.closed[fitting] = True
        self.samples.extend(fitting.tolist())


class Source(Protocol):
    """A source of the samples of batches."""

    def fill(self, batch: OpenBatch, size: int) -> None:
        """Add samples until there are ``size``, or none fits."""


class Queue:
    """A queue of all samples: a batch takes the first that fit, and they go to the end.

    Args:
        order: ``(n,)`` int64, all samples.
    """

    def __init__(self, order: IntArray) -> None:
        self._order = order

    def fill(self, batch: OpenBatch, size: int) -> None:
        """Add samples until there are ``size``, or none fits."""
        while missing := size - len(batch.samples):
            fitting = self._order[~batch.closed[self._order]][:missing]
            if not fitting.size:
                break
            batch.add(fitting)
        taken = np.zeros(self._order.size, dtype=bool)
        taken[batch.samples] = True
        self._order = np.concatenate([self._order[~taken[self._order]], np.array(batch.samples, dtype=np.int64)])


class LabelDraws:
    """Draws of labels by weight; each gives its next ``unit`` samples, or those it has, and begins again at its end.

    Args:
        members: Samples of each label, in the order in which it gives them.
        weights: ``(C,)`` weight of each label.
        unit: Samples of a draw.
        rng: Source of the draws.
    """

    def __init__(self, members: list[IntArray], weights: FloatArray, unit: int, rng: np.random.Generator) -> None:
        self._members, self._weights, self._unit, self._rng = [m.tolist() for m in members], weights, unit, rng
        self._used = [0] * len(members)

    def fill(self, batch: OpenBatch, size: int) -> None:
        """Add samples until there are ``size``, or none fits."""
        weights = self._weights.copy()
        while len(batch.samples) < size and weights.any():
            draws = -(-(size - len(batch.samples)) // self._unit)
            for label in self._rng.choice(weights.size, draws, p=weights / weights.sum()):
                number = min(self._unit, size - len(batch.samples))
                if number and weights[label]:
                    if found := self._next(label, number, batch):
                        batch.add(np.array(found))
                    else:
                        weights[label] = 0

    def _next(self, label: int, number: int, batch: OpenBatch) -> list[int]:
        """Return the next open samples of a label, at most ``number``, each once."""
        members, found = self._members[label], list[int]()
        for _ in range(len(members)):
            sample = members[self._used[label]]
            self._used[label] = (self._used[label] + 1) % len(members)
            if not batch.closed[sample]:
                found.append(sample)
            if len(found) == number:
                break
        return found
