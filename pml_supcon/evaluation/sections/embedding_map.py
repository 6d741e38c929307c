"""The section "map": the embeddings of test images in two dimensions."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pml_supcon.data.label_kinds import colours_of
from pml_supcon.evaluation.context import EvaluationContext
from pml_supcon.metrics.embedding_maps import embedding_map

RANGES = 7  # of numbers, each with a colour of its own


@dataclass(frozen=True, kw_only=True)
class MapSection:
    """The results of the section "map".

    Attributes:
        methods: The coordinates of ``n`` points by method (``pca``, ``tsne``, ``umap``).
        indices: The rows of the points among the test images.
        labels: The labels of the points: their classes, or the indices of their ``names``.
        names: The names of labels other than classes: the first label of a set, the largest share, a range of the first
            number.
    """

    methods: dict[str, list[list[float]]]
    indices: list[int]
    labels: list[int]
    names: list[str] | None = None


def map_embeddings(context: EvaluationContext) -> MapSection | None:
    """Map the unit embeddings of at most ``settings.map_points`` test images to two dimensions."""
    features = context.features("test")
    if not context.is_main:
        return None
    settings, features = context.settings, F.normalize(features)
    options = {"max_rows": settings.map_points, "seed": settings.seed}
    result = embedding_map(features, methods=settings.map_methods, **options)
    kind = context.data.labels_are
    labels, names = colours_of(context.labels("test")[result.rows], kind, context.data.class_names)
    if kind == "numbers":
        labels, names = ranges_of(labels)
    return MapSection(
        methods={name: points.round(4).tolist() for name, points in result.coordinates.items()},
        indices=result.rows.tolist(),
        labels=labels.tolist(),
        names=None if kind == "classes" else list(names),
    )


def ranges_of(numbers: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Return the range of each number, int64 ``(n,)``, of at most `RANGES` with about as many numbers, and their names.

    Examples:
        >>> ranges_of(torch.tensor([1.0, 2.0, 2.0, 30.0]))
        (tensor([0, 1, 1, 2]), ('1', '2', '30'))
    """
    values = numbers.unique()
    bounds = values
    if len(values) > RANGES:  # the lowest number of each range
        bounds = numbers.sort().values[torch.arange(RANGES) * len(numbers) // RANGES].unique()
    places = torch.searchsorted(bounds, numbers, right=True) - 1
    names = []
    for place in range(len(bounds)):
        low, high = numbers[places == place].aminmax()
        names.append(f"{low:g}" if low == high else f"{low:g} to {high:g}")
    return places, tuple(names)
