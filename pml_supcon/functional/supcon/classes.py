"""Classes of rows: their sizes, the samples that a cap keeps, and classes for rows without a label."""

from typing import NamedTuple

import torch
from torch import Tensor


class Cap(NamedTuple):
    """The ranks that cap the positives.

    ``rank`` counts the samples of a class in batch order. If ``k`` samples are kept, anchor ``i`` keeps the samples of
    rank below ``limit_i = k + [rank_i < k]``, and the other views of its own sample.
    """

    anchor_rank: Tensor
    anchor_limit: Tensor
    row_rank: Tensor

    def keeps(self, anchors: slice | Tensor, rows: slice | Tensor) -> Tensor:
        """Return the kept pairs, ``(len(anchors), len(rows))`` bool, given that their labels are equal."""
        rank = self.row_rank[rows]
        return (rank < self.anchor_limit[anchors, None]) | (rank == self.anchor_rank[anchors, None])


def own_classes(num_rows: int, num_views: int | None, device: torch.device, *, has_references: bool) -> Tensor:
    """Return labels that make every sample its own class, for batches without labels."""
    if num_views is None or has_references:
        raise ValueError(
            "Expected `labels` or `indices_tuple`: only rows contrasted with themselves whose views are known "
            "((B, V, D) embeddings, or `num_views`) need neither"
        )
    return torch.arange(num_rows // num_views, device=device).repeat(num_views)


def separate_ignored(
    labels: Tensor,
    ref_labels: Tensor | None,
    ignore_label: int,
    num_views: int | None,
    *,
    ref_starts_with_batch: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return labels ``(N,)`` and ``(M,)`` in which every sample with the ignored label is a class of its own.

    Other labels stay equal or different. Rows are samples of their own if the views are unknown. Nothing waits for the
    device.
    """
    views, number = num_views or 1, len(labels)
    given = labels if ref_labels is None else torch.cat([labels, ref_labels])
    # 1. the sample of each row, (N + M,): view-major rows of the batch, then references, N of which can be the batch
    samples = torch.arange(number // views, device=labels.device).repeat(views)
    further = torch.arange(number, len(given), device=labels.device)
    samples = torch.cat([samples, samples, further[number:]] if ref_starts_with_batch else [samples, further])
    # 2. a label as its place in the sorted labels, which is below N + M, and an ignored one as N + M + its sample
    places = torch.searchsorted(given.sort().values, given)
    classes = torch.where(given == ignore_label, len(given) + samples, places)
    return classes[:number], None if ref_labels is None else classes[number:]


def class_sizes(labels: Tensor) -> Tensor:
    """Return the number of rows with the label of each row, ``(M,)`` int64, from labels ``(M,)``."""
    ordered = labels.sort().values
    sizes: Tensor = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)
    return sizes


def rank_cap(labels: Tensor, num_views: int, keep: int, num_anchors: int) -> Cap:
    """Return the ranks by which every anchor keeps ``keep`` other samples of its class."""
    # 1. labels (B,) of the samples, sorted stably: equal labels keep the batch order
    samples = labels[: labels.shape[0] // num_views].to(torch.int64)  # uint64 keeps equality
    order = torch.argsort(samples, stable=True)
    ordered = samples[order]
    # 2. rank (B,): position in the sorted order - start of the class
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=labels.device) - torch.searchsorted(ordered, ordered)
    rank = rank.repeat(num_views)
    # 3. limit_i = keep + [rank_i < keep]: an anchor among the kept samples is itself one of them
    limit = keep + (rank < keep).long()
    return Cap(anchor_rank=rank[:num_anchors], anchor_limit=limit[:num_anchors], row_rank=rank)
