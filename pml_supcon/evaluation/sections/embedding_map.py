"""The section "map": the embeddings of test images in two dimensions."""

from dataclasses import dataclass

import torch.nn.functional as F

from pml_supcon.evaluation.context import EvaluationContext
from pml_supcon.metrics.embedding_maps import embedding_map


@dataclass(frozen=True, kw_only=True)
class MapSection:
    """The results of the section "map".

    Attributes:
        methods: The coordinates of ``n`` points by method (``pca``, ``tsne``, ``umap``).
        indices: The rows of the points among the test images.
        labels: The labels of the points.
    """

    methods: dict[str, list[list[float]]]
    indices: list[int]
    labels: list[int]


def map_embeddings(context: EvaluationContext) -> MapSection | None:
    """Map the unit embeddings of at most ``settings.map_points`` test images to two dimensions."""
    features = context.features("test")
    if not context.is_main:
        return None
    settings, features = context.settings, F.normalize(features)
    options = {"max_rows": settings.map_points, "seed": settings.seed}
    result = embedding_map(features, methods=settings.map_methods, **options)
    return MapSection(
        methods={name: points.round(4).tolist() for name, points in result.coordinates.items()},
        indices=result.rows.tolist(),
        labels=context.labels("test")[result.rows].tolist(),
    )
