"""PML's pairs, distances and loss terms as the miners need them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pytorch_metric_learning.distances import BaseDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.utils import loss_and_miner_utils
from torch import Tensor

from pml_supcon._checks import check_type
from pml_supcon._pml.losses import check_parts
from pml_supcon._tensors import check_dense
from pml_supcon.functional.supcon import checks
from pml_supcon.functional.supcon.execution import full_precision


class CheckedMiner(BaseMiner):
    """PML's base of miners, with checks of its options and calls."""

    def __init__(self, **kwargs: Any) -> None:
        check_parts(kwargs)
        super().__init__(**kwargs)

    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> Any:
        """Return the indices that ``mine`` chooses; labels may be on another device, as in PML."""
        same = ref_labels is labels
        checks.check_embeddings("embeddings", embeddings, dims=(2,))
        check_dense("embeddings", embeddings)
        labels = checks.check_labels("labels", labels, len(embeddings), embeddings.device)
        ref_labels = checks.check_references(embeddings, ref_emb, ref_labels, need_labels=True)
        wide, ref_wide = checks.int64_labels(labels, ref_labels)  # torch compares uint64 with no other
        # the same object stays the same: PML then leaves out the pairs of a row with itself
        return super().forward(embeddings, wide, ref_emb, wide if same else ref_wide)


class Pairs(NamedTuple):
    """The row indices, int64, of positive pairs and of negative pairs, in the order that PML's losses expect."""

    pos_anchors: Tensor
    positives: Tensor
    neg_anchors: Tensor
    negatives: Tensor


class Batch(NamedTuple):
    """The arguments of a miner's ``mine``.

    Without references, ``ref_emb`` and ``ref_labels`` are the same objects as ``embeddings`` and ``labels``.
    """

    embeddings: Tensor  # (N, D)
    labels: Tensor  # (N,)
    ref_emb: Tensor  # (M, D)
    ref_labels: Tensor  # (M,)


def matches(labels: Tensor, ref_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the masks of positive and of negative pairs, bool ``(N, M)``; a row is neither to itself."""
    positive, negative = loss_and_miner_utils.get_matches_and_diffs(labels, ref_labels)
    return positive.bool(), negative.bool()


def all_pairs(labels: Tensor, ref_labels: Tensor) -> Pairs:
    """Return all positive and all negative pairs, sorted by anchor, then by the other row."""
    return Pairs(*loss_and_miner_utils.get_all_pairs_indices(labels, ref_labels))


def in_full_precision(batch: Batch) -> Batch:
    """Return the batch with float16 and bfloat16 rows as float32, in which close distances stay distinct."""
    half = (torch.float16, torch.bfloat16)
    embeddings, ref_emb = (x.float() if x.dtype in half else x for x in (batch.embeddings, batch.ref_emb))
    if batch.ref_emb is batch.embeddings:
        ref_emb = embeddings
    return batch._replace(embeddings=embeddings, ref_emb=ref_emb)


def distances(distance: BaseDistance, batch: Batch) -> Tensor:
    """Return the distances ``(N, M)``, in full precision also under autocast; a similarity is negated."""
    embeddings, _, ref_emb, _ = in_full_precision(batch)
    with full_precision(embeddings.device):
        matrix: Tensor = distance(embeddings, ref_emb)
    return -matrix if distance.is_inverted else matrix


def check_loss(loss: object) -> None:
    """Raise unless the loss is one of PML's, which give a term for each pair or triplet."""
    expected = "a loss of pytorch-metric-learning (a BaseMetricLossFunction) or None"
    check_type("loss", loss, BaseMetricLossFunction, expected)


def loss_terms(
    loss: BaseMetricLossFunction, batch: Batch, indices: Sequence[Tensor], numbers: Mapping[str, int]
) -> list[Tensor]:
    """Return the terms of a loss for pairs or triplets, one tensor for each reduction type in ``numbers``, in order.

    ``numbers`` maps PML's reduction types to the expected number of terms. PML returns a plain 0 for a batch (or a kind
    of pair) without a loss: all terms are then 0. Terms that PML has already reduced are one number for all pairs,
    which changes no rank, and are ignored.
    """
    batch = in_full_precision(batch)
    with full_precision(batch.embeddings.device):
        terms = loss.compute_loss(batch.embeddings, batch.labels, tuple(indices), batch.ref_emb, batch.ref_labels)
    given = [(term["reduction_type"], term["losses"]) for term in terms.values() if isinstance(term["losses"], Tensor)]
    by_type = {kind: values for kind, values in given if kind != "already_reduced"}
    shapes = sorted((kind, tuple(values.shape)) for kind, values in given if kind != "already_reduced")
    if given and shapes != sorted((kind, (number,)) for kind, number in numbers.items() if number):
        given_terms = ", ".join(f"{kind} {tuple(values.shape)}" for kind, values in given)
        raise TypeError(
            "Expected argument `loss` to have a term for each pair or triplet (by PML's reduction types: "
            f"{', '.join(f'{kind} ({number},)' for kind, number in numbers.items())}), "
            f"but got {type(loss).__name__} with {given_terms}"
        )
    return [by_type.get(kind, batch.embeddings.new_zeros(number)) for kind, number in numbers.items()]
