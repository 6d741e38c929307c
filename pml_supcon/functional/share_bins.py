"""Gradient shares, summed in bins of the pairs' hardness."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pml_supcon._checks import check_int
from pml_supcon.functional.gradient_shares import MARGIN, TEMPERATURE, check_arguments, gradient_shares

CHUNK_BYTES = 16 * 2**20  # size of one (A, N) matrix; about ten exist at once


@dataclass(frozen=True)
class ShareBins:
    """The sums over anchors, by bin of hardness; add the sums of two batches with ``+``.

    They cover the positives, or the negatives, of the anchors for which these have a gradient.

    Attributes:
        share: ``(bins,)`` float64, sums of the anchors' gradient shares.
        even_share: ``(bins,)`` float64, sums of the fraction of each anchor's pairs in the bin: its share if all pairs
            had the same gradient.
        count: ``(bins,)`` int64, numbers of pairs.
        hardness: ``()`` float64, sum of the anchors' mean hardness over their pairs.
        gradient_hardness: ``()`` float64, the same sum with each pair weighted by its share.
        anchors: ``()`` int64, number of anchors.
    """

    share: Tensor
    even_share: Tensor
    count: Tensor
    hardness: Tensor
    gradient_hardness: Tensor
    anchors: Tensor

    def __add__(self, other: "ShareBins") -> "ShareBins":
        return ShareBins(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def binned_gradient_shares(
    embeddings: Tensor,
    labels: Tensor,
    *,
    loss: str = "supcon_out",
    temperature: float = TEMPERATURE,
    margin: float = MARGIN,
    bins: int = 20,
    chunk_size: int | None = None,
) -> tuple[ShareBins, ShareBins]:
    r"""Sum ``gradient_shares`` over all anchors by the hardness of the pairs, in memory linear in N.

    The hardness of a positive is :math:`1 - c_{ip}`, in [0, 2], and of a negative :math:`c_{in}`, in [-1, 1]. Both
    ranges are cut into bins of equal width; a value on an edge belongs to the upper bin, and the last bin includes
    both its edges.

    Args:
        embeddings: ``(N, D)`` floats, as for ``gradient_shares``.
        labels: ``(N,)`` integers, on any device.
        loss: "supcon_out", "supcon_in" or "triplet".
        temperature: Temperature ``> 0`` of the supcon losses.
        margin: Margin ``>= 0`` of "triplet".
        bins: Number of bins, ``>= 1``.
        chunk_size: Anchors at a time, ``>= 1``; None: as many as one matrix of 16 MiB holds.

    Returns:
        The sums of the positives and of the negatives.

    Raises:
        TypeError: If an argument has the wrong type, as for ``gradient_shares``.
        ValueError: If an argument has a wrong value, as for ``gradient_shares``.

    Examples:
        >>> z = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
        >>> positives, negatives = binned_gradient_shares(z, torch.tensor([0, 0, 0, 1]), bins=4)
        >>> positives.count.tolist(), int(positives.anchors), negatives.count.tolist()
        ([4, 0, 2, 0], 3, [1, 0, 1, 0])
    """
    check_int("bins", bins, low=1)
    if chunk_size is not None:
        check_int("chunk_size", chunk_size, low=1)
    labels = check_arguments(embeddings, labels, loss, temperature, margin)
    rows = len(embeddings)
    size = chunk_size or max(1, CHUNK_BYTES // (max(rows, 1) * max(4, embeddings.element_size())))
    zeros = torch.zeros(bins, dtype=torch.float64, device=embeddings.device)
    sums = (ShareBins(zeros, zeros, zeros.long(), zeros.sum(), zeros.sum(), zeros.long().sum()),) * 2
    for start in range(0, rows, size):
        part = slice(start, start + size)
        found = gradient_shares(embeddings, labels, loss=loss, temperature=temperature, margin=margin, anchors=part)
        of_positives = _binned(found.shares, found.positives, 1 - found.cosine, 0.0, bins)
        of_negatives = _binned(found.shares, found.negatives, found.cosine, -1.0, bins)
        sums = sums[0] + of_positives, sums[1] + of_negatives
    return sums


def _binned(shares: Tensor, kind: Tensor, hardness: Tensor, low: float, bins: int) -> ShareBins:
    """Return the sums of one kind of pairs of some anchors, from their shares, mask and hardness, ``(A, N)`` each."""
    # 1. keep the anchors for which this kind has a gradient, (A', N)
    pulled = (shares * kind).any(dim=1)
    kind = kind[pulled].double()
    shares, hardness = shares[pulled] * kind, hardness[pulled].double()
    # 2. 1 / (pairs of the anchor) for each pair, (A', N): the weights of its mean
    even = kind / kind.sum(dim=1, keepdim=True)
    # 3. the bin of each pair, from bins of width 2 / bins; rows of the other kind have weight 0 in every sum
    place = ((hardness - low) * (bins / 2)).long().clamp_(max=bins - 1).flatten()

    def by_bin(weights: Tensor) -> Tensor:
        return torch.bincount(place, weights.flatten(), minlength=bins)

    return ShareBins(
        share=by_bin(shares),
        even_share=by_bin(even),
        count=by_bin(kind).long(),
        hardness=(even * hardness).sum(),
        gradient_hardness=(shares * hardness).sum(),
        anchors=pulled.sum(),
    )
