"""What the losses know of pytorch-metric-learning's insides, in one place (PML 2.9)."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity, DotProductSimilarity
from pytorch_metric_learning.reducers import BaseReducer, MeanReducer, MultipleReducers
from torch import Tensor

from pml_supcon.functional import AnchorLosses


def similarity_of(distance: BaseDistance) -> tuple[bool, Callable[[Tensor, Tensor], Tensor] | None]:
    """How `supcon_loss` is to compare rows: `(normalize, similarity)`; `similarity` is None for a dot product."""
    is_dot_product = (  # a subclass may compute anything
        type(distance) in (CosineSimilarity, DotProductSimilarity)
        and distance.power == 1
        and (distance.p == 2 or not distance.normalize_embeddings)
    )
    if is_dot_product:
        return distance.normalize_embeddings, None
    if distance.is_inverted:
        return False, distance
    return False, lambda anchors, rows: -distance(anchors, rows)


def record_norms(distance: BaseDistance, embeddings: Tensor, ref_emb: Tensor) -> None:
    """Fill in the statistics that a distance records when it is called, where they are collected."""
    if distance.collect_stats:
        distance.reset_stats()
        with torch.no_grad():
            normalized = distance.maybe_normalize(embeddings), distance.maybe_normalize(ref_emb)
        distance.set_default_stats(embeddings, ref_emb, *normalized)


def is_mean(reducer: BaseReducer) -> bool:
    """Whether the reducer takes the plain mean of our losses."""
    own = reducer.reducers["loss"] if isinstance(reducer, MultipleReducers) and "loss" in reducer.reducers else reducer
    return type(own) is MeanReducer


def loss_dict(terms: AnchorLosses, reducer: BaseReducer) -> dict[str, dict[str, Any]]:
    """Per-anchor losses as PML's reducers take them; a reducer sees the valid anchors only.

    The plain mean is taken here, over a mask: it needs no count of the valid anchors on the host, and is 0 (with a
    graph) where there is none.
    """
    if is_mean(reducer):
        return {"loss": {"losses": terms.mean(), "indices": None, "reduction_type": "already_reduced"}}
    indices = terms.valid.nonzero()[:, 0]
    if len(indices) == 0:
        return {"loss": {"losses": 0, "indices": None, "reduction_type": "already_reduced"}}
    return {"loss": {"losses": terms.losses[indices], "indices": indices, "reduction_type": "element"}}
