"""The sections "retrieval", "gallery" and "map": the test images among the training images, or among themselves."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pml_supcon._arrays import count_zero_rows
from pml_supcon.evaluation.context import Split, Subject
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


def retrieval(subject: Subject) -> dict[str, Any] | None:
    """All retrieval metrics of the encoder's features, over all test images and for each class."""
    search = open_search(subject)
    if search is None:
        return None
    settings, rows = subject.settings, (search.queries, search.wanted, search.references, search.labels)
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
        subject.tell(f"{zeros} embeddings are zero: they have no direction, and their neighbours mean nothing.")
    lone = int(np.isnan(scores["precision_at_1"]).sum())
    if lone:
        subject.tell(f"{lone} of {len(search.wanted)} test images have no image of their class to be found: left out.")
    available = len(search.labels) - int(search.own)
    if (most := max(*settings.recall_at, settings.knn_k)) > available:
        subject.tell(f"{most} neighbours were asked for, but there are {available}: all of them count.")
    names = subject.data.class_names
    return {
        "metrics": metrics | clustering_metrics(search.queries, search.wanted),
        "index": _index(subject, search),
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


def gallery(subject: Subject) -> list[dict[str, Any]] | None:
    """The test images that retrieval serves worst, with their neighbours."""
    search = open_search(subject)
    if search is None:
        return None
    worst = worst_queries(
        search.queries,
        search.wanted,
        search.references,
        search.labels,
        queries=subject.settings.gallery_queries,
        neighbours=subject.settings.gallery_neighbours,
        ref_includes_query=search.own,
    )
    names, wanted, labels = subject.data.class_names, search.wanted.tolist(), search.labels.tolist()
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


def map_of_embeddings(subject: Subject) -> dict[str, Any] | None:
    """The test images on a plane."""
    features = subject.features("test")
    if not subject.is_main:
        return None
    settings = subject.settings
    found = embedding_map(
        F.normalize(features), methods=settings.map_methods, max_rows=settings.map_points, seed=settings.seed
    )
    return {
        "methods": {name: points.round(4).tolist() for name, points in found.coordinates.items()},
        "indices": found.rows.tolist(),
        "labels": subject.labels("test")[found.rows].tolist(),
    }


def gallery_split(subject: Subject) -> Split:
    """What the test images are sought among: as asked, or each other where no class is shared."""
    shared = torch.isin(subject.labels("test"), subject.labels("train")).any()
    if subject.settings.among == "train" and not shared:
        subject.tell(
            "No class of the test images is among those of the training images: the test images are sought among each "
            "other (zero-shot retrieval), and there is no classifier to score."
        )
        return "test"
    return subject.settings.among


def open_search(subject: Subject) -> Search | None:
    """The rows of a search; None on other processes than the main one."""
    among = gallery_split(subject)
    queries = F.normalize(subject.features("test"))
    references = queries if among == "test" else F.normalize(subject.features("train"))
    if not subject.is_main:
        return None
    return Search(queries, subject.labels("test"), references, subject.labels(among), among == "test")


def _index(subject: Subject, search: Search) -> dict[str, Any]:
    """The index, with the share of true neighbours that it finds where it is approximate."""
    name = subject.settings.index
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
        seed=subject.settings.seed,
        ref_includes_query=search.own,
    )
    return {"name": name, "recall_at_k": {str(k): value for k, value in recall.items()}, "queries": queries}
