"""The plan of one epoch whose classes are drawn by weights: class-balanced, or by the effective number of samples."""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from pml_supcon._checks import check_choice, check_fraction, shown
from pml_supcon.samplers.batch_shape import BatchShape
from pml_supcon.samplers.label_arrays import IntArray

FloatArray = npt.NDArray[np.float64]
Draw = Literal["uniform", "class_balanced", "effective_number"]


def check_draw(draw: Draw, beta: float | None) -> float | None:
    """Return ``beta`` as a float; raise unless the draw is known, with a ``beta`` if it is by the effective number.

    Raises:
        TypeError: If ``beta`` is not a number.
        ValueError: If ``draw`` is unknown, or ``beta`` is out of range, lacks or does not belong there.
    """
    check_choice("draw", draw, get_args(Draw))
    if draw == "effective_number":
        if beta is None:
            raise ValueError("Expected argument `beta` to be in (0, 1) with draw='effective_number', but got None")
        return check_fraction("beta", beta)
    if beta is not None:
        raise ValueError(f"Expected no `beta` unless draw='effective_number', but got {shown(beta)} with {draw!r}")
    return None


def class_weights(counts: IntArray, beta: float | None) -> FloatArray:
    """Return the weight with which a class of ``n`` samples is drawn.

    The effective number of its samples is ``E(n) = (1 - beta^n) / (1 - beta)`` (Cui et al., CVPR 2019, equation 2), and
    each of its samples has the weight ``1 / E(n)``, so that the class has ``n / E(n)``: ``n`` for ``beta -> 0``, a
    uniform draw of samples, and 1 for ``beta -> 1``, a class-balanced draw.

    Args:
        counts: ``(C,)`` int64 samples of each class.
        beta: In (0, 1), or None for class-balanced draws.

    Returns:
        ``(C,)`` float64, positive, and 0 for a class without samples.

    Examples:
        >>> class_weights(np.array([1, 10, 100]), beta=0.9).round(2)
        array([ 1.  ,  1.54, 10.  ])
    """
    if beta is None:
        return (counts > 0).astype(np.float64)
    # expm1 keeps the digits that 1 - beta^n loses where beta is close to 1
    effective = np.expm1(np.maximum(counts, 1) * np.log(beta)) / np.expm1(np.log(beta))
    weights: FloatArray = counts / effective
    return weights


class WeightedPlanner:
    """A planner of epochs with as many draws as samples, in which the weights choose the classes.

    A batch draws its units by the weights of their classes, and draws above the limit again, so that no sample is
    twice in a batch. In an epoch a class gives its samples in turn, in an order drawn anew each epoch: a
    rare class begins again, and a frequent one gives a part of its samples.

    Args:
        codes: ``(n,)`` int64, the class of each sample, ``0..C-1``.
        shape: Size and limit of a batch.
        beta: As in `class_weights`.

    Attributes:
        full: Full batches in an epoch.
        rest: Samples in the smaller batch after them, 0 where there is none.
    """

    def __init__(self, codes: IntArray, shape: BatchShape, beta: float | None) -> None:
        self._codes, self._shape = codes, shape
        self._counts = np.bincount(codes)  # (C,): samples of each class
        units = self._counts // shape.unit
        shape.check_room(units)
        self._most = np.minimum(units, shape.units if shape.cap is None else shape.cap)  # (C,): units in a batch
        self._weights = class_weights(self._counts, beta)  # (C,)
        self.full, rest = divmod(codes.size // shape.unit, shape.units)
        self.rest = rest * shape.unit

    def left_out(self, *, rest_dropped: bool) -> tuple[int, str]:
        """Return how many samples are never drawn, and the reason in words."""
        never = int(self._counts[self._most == 0].sum())
        return never, f"in every epoch: they are of classes with fewer than {self._shape.unit} samples."

    def plan(self, rng: np.random.Generator) -> list[IntArray]:
        """Return the indices of each batch of one epoch: the full batches, then the smaller one, if any."""
        # 1. (n,): all samples, class by class, each class shuffled
        order = rng.permutation(self._codes.size)
        order = order[np.argsort(self._codes[order], kind="stable")]
        heads = np.cumsum(self._counts) - self._counts  # (C,): place of the first sample of each class
        used = np.zeros_like(heads)  # (C,): draws of each class so far
        batches, unit = [], self._shape.unit
        for size in [self._shape.units] * self.full + [self.rest // unit] * bool(self.rest):
            # 2. for each batch the number of samples of each class, (C,), and the class of each draw, (B,)
            counts = draw_units(self._weights, self._most, size, rng) * unit
            classes = np.repeat(np.arange(counts.size), counts)
            # 3. (B,): the next samples of these classes; after its last sample a class begins again
            turn = used[classes] + np.arange(classes.size) - np.repeat(np.cumsum(counts) - counts, counts)
            batches.append(rng.permutation(order[heads[classes] + turn % self._counts[classes]]))
            used = used + counts
        return batches


def draw_units(weights: FloatArray, most: IntArray, size: int, rng: np.random.Generator) -> IntArray:
    """Draw the units of each class in a batch, int64 ``(C,)`` in ``[0, most]`` with sum ``size``.

    Units are drawn independently by the weights of their classes, ``(C,)``. A class above its most, ``(C,)``, is
    reduced to it and not drawn from again. The sum of ``most`` is at least ``size``.

    Examples:
        >>> draw_units(np.array([1e9, 1, 1]), np.array([2, 1, 1]), 4, np.random.default_rng(0))
        array([2, 1, 1])
    """
    batch = np.zeros_like(most)
    while missing := size - int(batch.sum()):
        free = np.where(batch < most, weights, 0)
        drawn = rng.choice(most.size, missing, p=free / free.sum())
        batch = np.minimum(batch + np.bincount(drawn, minlength=most.size), most)
    return batch
