"""What the miners know of pytorch-metric-learning's insides, in one place (PML 2.9)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from pytorch_metric_learning.distances import BaseDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor


class Pairs(NamedTuple):
    """Anchors and positives, anchors and negatives, as PML's losses take them; int64."""

    pos_anchors: Tensor
    positives: Tensor
    neg_anchors: Tensor
    negatives: Tensor


class Batch(NamedTuple):
    """What a miner's `mine` is given: `(N, D)`, `(N,)`, `(M, D)`, `(M,)`, the first two again for no references."""

    embeddings: Tensor
    labels: Tensor
    ref_emb: Tensor
    ref_labels: Tensor


def matches(labels: Tensor, ref_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which are positives and which negatives, bool `(N, M)` each; a row is neither to itself."""
    positive = labels[:, None] == ref_labels
    negative = ~positive
    if ref_labels is labels:  # PML's sign for rows compared with themselves
        positive = positive.fill_diagonal_(False)
    return positive, negative


def all_pairs(labels: Tensor, ref_labels: Tensor) -> Pairs:
    """All positive and all negative pairs, by anchor and then by the other row."""
    positive, negative = matches(labels, ref_labels)
    return Pairs(*positive.nonzero(as_tuple=True), *negative.nonzero(as_tuple=True))


def in_full_precision(batch: Batch) -> Batch:
    """The batch with half-precision rows as float32, in which neighbours in rank stay apart (and `cdist` works)."""
    half = (torch.float16, torch.bfloat16)
    embeddings, ref_emb = (x.float() if x.dtype in half else x for x in (batch.embeddings, batch.ref_emb))
    if batch.ref_emb is batch.embeddings:
        ref_emb = embeddings
    return batch._replace(embeddings=embeddings, ref_emb=ref_emb)


def distances(distance: BaseDistance, batch: Batch) -> Tensor:
    """How far apart rows are, `(N, M)`, float32 at least, autocast or not; of a similarity the negative."""
    embeddings, _, ref_emb, _ = in_full_precision(batch)
    with torch.autocast(embeddings.device.type, enabled=False):
        far: Tensor = distance(embeddings, ref_emb)
    return -far if distance.is_inverted else far


def check_loss(loss: object) -> None:
    """Refuse what has no terms to rank by."""
    if not isinstance(loss, BaseMetricLossFunction):
        raise TypeError(
            "Expected argument `loss` to be a loss of pytorch-metric-learning (a BaseMetricLossFunction) or None, "
            f"but got {type(loss).__name__}"
        )


def loss_terms(
    loss: BaseMetricLossFunction, batch: Batch, indices: Sequence[Tensor], numbers: Mapping[str, int]
) -> list[Tensor]:
    """A loss's own terms for pairs or triplets, by reduction type: as many as `numbers` says, in their order.

    PML gives a plain 0 for a batch (or a kind of pair) that it finds no loss in: all terms are 0 then. Terms that are
    already reduced are the same for all, and change no rank.
    """
    batch = in_full_precision(batch)
    with torch.autocast(batch.embeddings.device.type, enabled=False):
        terms = loss.compute_loss(batch.embeddings, batch.labels, tuple(indices), batch.ref_emb, batch.ref_labels)
    given = [(term["reduction_type"], term["losses"]) for term in terms.values() if isinstance(term["losses"], Tensor)]
    by_type = {kind: values for kind, values in given if kind != "already_reduced"}
    shapes = sorted((kind, tuple(values.shape)) for kind, values in given if kind != "already_reduced")
    if given and shapes != sorted((kind, (number,)) for kind, number in numbers.items() if number):
        came = ", ".join(f"{kind} {tuple(values.shape)}" for kind, values in given)
        raise TypeError(
            "Expected argument `loss` to have a term for each pair or triplet (by PML's reduction types: "
            f"{', '.join(f'{kind} ({number},)' for kind, number in numbers.items())}), "
            f"but got {type(loss).__name__} with {came}"
        )
    return [by_type.get(kind, batch.embeddings.new_zeros(number)) for kind, number in numbers.items()]
