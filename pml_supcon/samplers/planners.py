"""The planner of epochs that labels, limit and draw ask for."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pml_supcon.samplers.batch_shape import BatchShape
from pml_supcon.samplers.epoch_planner import EpochPlanner
from pml_supcon.samplers.label_arrays import IntArray, LabelsAre, hierarchy_classes
from pml_supcon.samplers.set_draw_planner import SetDrawPlanner
from pml_supcon.samplers.set_group_planner import SetGroupPlanner
from pml_supcon.samplers.weighted_planner import Draw, WeightedPlanner


class Planner(Protocol):
    """A planner of epochs; all epochs have the same number of batches.

    Attributes:
        full: Full batches in an epoch.
        rest: Samples in the smaller batch after them, 0 where there is none.
    """

    full: int
    rest: int

    def left_out(self, *, rest_dropped: bool) -> tuple[int, str]:
        """Return how many samples an epoch leaves out, and the reasons in words."""

    def plan(self, rng: np.random.Generator) -> list[IntArray]:
        """Return the indices of each batch of one epoch: the full batches, then the smaller one, if any."""


def build_planner(
    labels: npt.NDArray[Any], shape: BatchShape, *, labels_are: LabelsAre, draw: Draw, beta: float | None
) -> Planner:
    """Build the planner of checked labels, `read_labels`.

    Raises:
        ValueError: If the limit does not allow the batch size.
    """
    weighted = draw != "uniform"
    if labels_are == "sets" and (weighted or shape.limit):
        if shape.grouped and not weighted:
            return SetGroupPlanner(labels, shape)
        return SetDrawPlanner(labels, shape, weighted=weighted, beta=beta)
    if labels_are == "sets":
        labels = np.zeros(len(labels), dtype=np.int64)  # a plain shuffle
    if labels_are == "hierarchy":
        labels = hierarchy_classes(labels, shape.unit)
    return WeightedPlanner(labels, shape, beta) if weighted else EpochPlanner(labels, shape)
