"""The section "retrieval": the metrics of test images that query the training images, or each other."""

import math
from dataclasses import dataclass
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pml_supcon._arrays import count_zero_rows
from pml_supcon.evaluation.context import EvaluationContext
from pml_supcon.evaluation.settings import Split
from pml_supcon.metrics import clustering_metrics, per_class_means, retrieval_scores
from pml_supcon.search import index_recall

INDEX_RECALL_AT = (1, 10, 100)
INDEX_QUERIES = 1000


class Index(TypedDict):
    """The index of the neighbours: its name and, if it is approximate, its recall of the exact ones by k."""

    name: str
    recall_at_k: NotRequired[dict[str, float]]
    queries: NotRequired[int]


@dataclass(frozen=True, kw_only=True)
class RetrievalSection:
    """The results of the section "retrieval".

    Attributes:
        metrics: The metrics over all queries.
        index: The index that searched the neighbours.
        queries: The number of queries.
        references: The number of images that were searched.
        lone_queries: The number of queries that have no reference of their class. The metrics leave them out.
        zero_rows: The number of embeddings that are zero and so have no direction.
        per_class: The metrics by class, and the number of its ``queries``; None: no query of the class counts.
    """

    metrics: dict[str, float]
    index: Index
    queries: int
    references: int
    lone_queries: int
    zero_rows: int
    per_class: dict[str, dict[str, float | None]]


class Search(NamedTuple):
    """The unit embeddings ``(N, width)`` and labels of queries and references, and if both are the same images."""

    queries: Tensor
    query_labels: Tensor
    references: Tensor
    reference_labels: Tensor
    same_images: bool


def retrieval(context: EvaluationContext) -> RetrievalSection | None:
    """Compute all retrieval metrics of the encoder's features, over all test images and for each class."""
    search = open_search(context)
    if search is None:
        return None
    settings = context.settings
    scores = retrieval_scores(
        *search[:4],
        ref_includes_query=search.same_images,
        recall_at=settings.recall_at,
        knn_k=settings.knn_k,
        knn_temperature=settings.knn_temperature,
        at_r=settings.at_r,
        index=settings.index,
    )
    metrics = {name: float(np.nanmean(values)) for name, values in scores.items()}
    zeros = count_zero_rows(search.queries) + (0 if search.same_images else count_zero_rows(search.references))
    if zeros:
        context.note(f"{zeros} embeddings are zero: they have no direction, and their neighbours are arbitrary.")
    lone = int(np.isnan(scores["precision_at_1"]).sum())
    if lone:
        context.note(
            f"{lone} of {len(search.queries)} test images have no reference of their class: retrieval leaves them out."
        )
    available = len(search.references) - int(search.same_images)
    if (most := max(*settings.recall_at, settings.knn_k)) > available:
        context.note(f"The settings ask for {most} neighbours, but there are {available}: all of them are used.")
    names = context.data.class_names
    return RetrievalSection(
        metrics=metrics | clustering_metrics(search.queries, search.query_labels),
        index=_describe_index(context, search),
        queries=len(search.queries),
        references=len(search.references),
        lone_queries=lone,
        zero_rows=zeros,
        per_class={
            names[label]: {name: None if math.isnan(value) else value for name, value in means.items()}
            | {"queries": int(means["queries"])}
            for label, means in per_class_means(scores, search.query_labels).items()
        },
    )


def reference_split(context: EvaluationContext) -> Split:
    """Return the split of the references: as the settings say, or "test" if train and test share no class."""
    shared = torch.isin(context.labels("test"), context.labels("train")).any()
    if context.settings.among == "train" and not shared:
        context.note(
            "Training and test images share no class: the test images are searched among each other (zero-shot "
            "retrieval), and sections that need a classifier are left out."
        )
        return "test"
    return context.settings.among


def open_search(context: EvaluationContext) -> Search | None:
    """Return the embeddings and labels of a search; None on all processes but the main one."""
    among = reference_split(context)
    queries = F.normalize(context.features("test"))
    references = queries if among == "test" else F.normalize(context.features("train"))
    if not context.is_main:
        return None
    return Search(queries, context.labels("test"), references, context.labels(among), among == "test")


def _describe_index(context: EvaluationContext, search: Search) -> Index:
    name = context.settings.index
    if name == "exact":
        return {"name": name}
    queries = min(INDEX_QUERIES, len(search.queries))
    recall = index_recall(
        search.queries,
        search.references,
        index=name,
        k=[k for k in INDEX_RECALL_AT if k <= len(search.references) - int(search.same_images)],
        queries=queries,
        seed=context.settings.seed,
        ref_includes_query=search.same_images,
    )
    return {"name": name, "recall_at_k": {str(k): value for k, value in recall.items()}, "queries": queries}
