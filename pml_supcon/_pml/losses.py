"""PML's distances and reducers as the losses need them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity, DotProductSimilarity, LpDistance
from pytorch_metric_learning.reducers import BaseReducer, ClassWeightedReducer, MeanReducer, MultipleReducers
from torch import Tensor

from pml_supcon._checks import check_bool, check_type
from pml_supcon.functional import AnchorLosses


def similarity_of(distance: BaseDistance) -> tuple[bool, Callable[[Tensor, Tensor], Tensor] | None]:
    """Return a distance as the options ``(normalize, similarity)`` of ``supcon_loss``.

    ``similarity`` is None for PML's cosine similarity and dot product, which every backend computes.
    """
    is_dot_product = (  # the exact classes: a subclass may compute anything
        type(distance) in (CosineSimilarity, DotProductSimilarity)
        and distance.power == 1
        and (distance.p == 2 or not distance.normalize_embeddings)
    )
    if is_dot_product:
        return distance.normalize_embeddings, None
    return False, similarity_function(distance)


def unless_euclidean(distance: BaseDistance) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return a distance as a similarity function; None for PML's Euclidean distance of raw rows."""
    raw = (distance.p, distance.power, distance.normalize_embeddings) == (2, 1, False)
    return None if type(distance) is LpDistance and raw else similarity_function(distance)


def similarity_function(distance: BaseDistance) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a distance as a function of two tensors that is larger for more similar rows."""
    return distance if distance.is_inverted else lambda anchors, rows: -distance(anchors, rows)


def record_norms(distance: BaseDistance, embeddings: Tensor, ref_emb: Tensor) -> None:
    """Record the statistics of a distance, as calling it would, if it collects any."""
    if distance.collect_stats:
        distance.reset_stats()
        with torch.no_grad():
            normalized = distance.maybe_normalize(embeddings), distance.maybe_normalize(ref_emb)
        distance.set_default_stats(embeddings, ref_emb, *normalized)


def check_parts(parts: Mapping[str, Any]) -> None:
    """Raise unless the arguments of PML's losses and miners among ``parts`` have their types."""
    kinds = {"distance": BaseDistance, "reducer": BaseReducer}
    if parts.get("embedding_regularizer") is not None:
        from pytorch_metric_learning.regularizers import BaseRegularizer  # PML's losses alone do not import it

        kinds["embedding_regularizer"] = BaseRegularizer
    for name, kind in kinds.items():
        if parts.get(name) is not None:
            check_type(name, parts[name], kind, f"a {kind.__name__} of pytorch-metric-learning or None")
    check_bool("collect_stats", parts.get("collect_stats", False))


def check_class_weights(reducer: BaseReducer, labels: Tensor | None) -> None:
    """Raise unless PML's reducer with a weight for each class has one for every label; waits for the device."""
    if type(reducer) is MeanReducer:
        return
    for part in reducer.modules():
        if not isinstance(part, ClassWeightedReducer) or torch.compiler.is_compiling():
            continue
        if labels is None:
            raise ValueError(
                "Expected `labels`, or a `reducer` without weights of classes, but got a ClassWeightedReducer alone"
            )
        if labels.ndim > 1 or labels.is_floating_point():
            given = f"labels of shape {tuple(labels.shape)}" if labels.ndim > 1 else f"labels {labels.dtype}"
            raise ValueError(
                f"Expected class labels with a ClassWeightedReducer, which has a weight for each class, but got {given}"
            )
        if labels.is_meta or not labels.numel():
            continue
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(part.weights):
            raise ValueError(
                f"Expected argument `labels` to be in [0, {len(part.weights)}), the classes with a weight in the "
                f"ClassWeightedReducer, but got {low} to {high}"
            )


def is_mean(reducer: BaseReducer) -> bool:
    """Return True if the reducer takes the plain mean of the per-anchor losses."""
    own = reducer.reducers["loss"] if isinstance(reducer, MultipleReducers) and "loss" in reducer.reducers else reducer
    return type(own) is MeanReducer


def reduced(loss: Tensor | int) -> dict[str, dict[str, Any]]:
    """Return a batch loss in the format of PML's reducers, which do not reduce it again."""
    return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}


def loss_dict(terms: AnchorLosses, reducer: BaseReducer) -> dict[str, dict[str, Any]]:
    """Return per-anchor losses in the format of PML's reducers, which get the valid anchors only.

    The plain mean is computed here with a mask: the host then needs no count of the valid anchors, and the mean of
    none is 0 with a graph.
    """
    if is_mean(reducer):
        return reduced(terms.mean())
    indices = terms.valid.nonzero()[:, 0]
    if len(indices) == 0:
        return reduced(0)
    # the divisor is for DivisorReducer, which divides the sum by it
    elements = {"losses": terms.losses[indices], "indices": indices, "divisor": len(indices)}
    return {"loss": {**elements, "reduction_type": "element"}}
