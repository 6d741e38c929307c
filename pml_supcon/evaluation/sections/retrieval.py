"""The sections "retrieval", "gallery" and "map": the test images among the training images, or among themselves."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pml_supcon._arrays import count_zero_rows
from pml_supcon.evaluation.context import EvaluationContext, Split
from pml_supcon.metrics import clustering_metrics, per_class_means, retrieval_scores
from pml_supcon.metrics.embedding_maps import embedding_map
from pml_supcon.metrics.gallery import worst_queries
from pml_supcon.search import index_recall

INDEX_RECALL_AT = (1, 10, 100)
INDEX_QUERIES = 1000


class Search(NamedTuple):
    """Unit rows `(N, width)` and labels of the queries and of what they are sought among."""

    queries: Tensor
    wanted: Tensor
    references: Tensor
    labels: Tensor
    own: bool


def retrieval(context: EvaluationContext) -> dict[str, Any] | None:
    """All retrieval metrics of the encoder's features, over all test images and for each class."""
    search = open_search(context)
    if search is None:
        return None
    settings, rows = context.settings, (search.queries, search.wanted, search.references, search.labels)
    options: dict[str, Any] = {
        "ref_includes_query": search.own,
        "recall_at": settings.recall_at,
        "knn_k": settings.knn_k,
        "knn_temperature": settings.knn_temperature,
        "at_r": settings.at_r,
        "index": settings.index,
    }
    scores = retrieval_scores(*rows, **options)
    metrics = {name: float(np.nanmean(values)) for name, values in scores.items()}
    zeros = count_zero_rows(search.queries) + (0 if search.own else count_zero_rows(search.references))
    if zeros:
        context.note(f"{zeros} embeddings are zero: they have no direction, and their neighbours mean nothing.")
    lone = int(np.isnan(scores["precision_at_1"]).sum())
    if lone:
        context.note(f"{lone} of {len(search.wanted)} test images have no image of their class to be found: left out.")
    available = len(search.labels) - int(search.own)
    if (most := max(*settings.recall_at, settings.knn_k)) > available:
        context.note(f"{most} neighbours were asked for, but there are {available}: all of them count.")
    names = context.data.class_names
    return {
        "metrics": metrics | clustering_metrics(search.queries, search.wanted),
        "index": _index(context, search),
        "queries": len(search.wanted),
        "references": len(search.labels),
        "lone_queries": lone,
        "zero_rows": zeros,
        "per_class": {
            names[label]: {name: None if math.isnan(value) else value for name, value in means.items()}
            | {"queries": int(means["queries"])}
            for label, means in per_class_means(scores, search.wanted).items()
        },
    }


def gallery(context: EvaluationContext) -> list[dict[str, Any]] | None:
    """The test images that retrieval serves worst, with their neighbours."""
    search = open_search(context)
    if search is None:
        return None
    worst = worst_queries(
        search.queries,
        search.wanted,
        search.references,
        search.labels,
        queries=context.settings.gallery_queries,
        neighbours=context.settings.gallery_neighbours,
        ref_includes_query=search.own,
    )
    names, wanted, labels = context.data.class_names, search.wanted.tolist(), search.labels.tolist()
    return [
        {
            "query": row,
            "label": names[wanted[row]],
            "score": score,
            "neighbours": [
                {
                    "reference": reference,
                    "label": names[labels[reference]],
                    "right": labels[reference] == wanted[row],
                    "similarity": similarity,
                }
                for reference, similarity in zip(references, similarities, strict=True)
            ],
        }
        for row, score, references, similarities in zip(*(part.tolist() for part in worst), strict=True)
    ]


def map_of_embeddings(context: EvaluationContext) -> dict[str, Any] | None:
    """The test images on a plane."""
    features = context.features("test")
    if not context.is_main:
        return None
    settings = context.settings
    found = embedding_map(
        F.normalize(features), methods=settings.map_methods, max_rows=settings.map_points, seed=settings.seed
    )
    return {
        "methods": {name: points.round(4).tolist() for name, points in found.coordinates.items()},
        "indices": found.rows.tolist(),
        "labels": context.labels("test")[found.rows].tolist(),
    }


def gallery_split(context: EvaluationContext) -> Split:
    """What the test images are sought among: as asked, or each other where no class is shared."""
    shared = torch.isin(context.labels("test"), context.labels("train")).any()
    if context.settings.among == "train" and not shared:
        context.note(
            "No class of the test images is among those of the training images: the test images are sought among each "
            "other (zero-shot retrieval), and there is no classifier to score."
        )
        return "test"
    return context.settings.among


def open_search(context: EvaluationContext) -> Search | None:
    """The rows of a search; None on other processes than the main one."""
    among = gallery_split(context)
    queries = F.normalize(context.features("test"))
    references = queries if among == "test" else F.normalize(context.features("train"))
    if not context.is_main:
        return None
    return Search(queries, context.labels("test"), references, context.labels(among), among == "test")


def _index(context: EvaluationContext, search: Search) -> dict[str, Any]:
    """The index, with the share of true neighbours that it finds where it is approximate."""
    name = context.settings.index
    if name == "exact":
        return {"name": name}
    asked = [k for k in INDEX_RECALL_AT if k <= len(search.labels) - int(search.own)]
    queries = min(INDEX_QUERIES, len(search.wanted))
    recall = index_recall(
        search.queries,
        search.references,
        index=name,
        k=asked,
        queries=queries,
        seed=context.settings.seed,
        ref_includes_query=search.own,
    )
    return {"name": name, "recall_at_k": {str(k): value for k, value in recall.items()}, "queries": queries}
