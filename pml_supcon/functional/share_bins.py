"""Gradient shares, summed in bins of the pairs' hardness."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pml_supcon.functional.gradient_shares import MARGIN, TEMPERATURE, check_arguments, gradient_shares
from pml_supcon.functional.supcon import checks

CHUNK_BYTES = 16 * 2**20  # of one (A, N) matrix; about ten exist at once


@dataclass(frozen=True)
class ShareBins:
    """Sums over anchors, by bin of hardness; the sums of two batches add up.

    Only anchors with a gradient from such pairs (positives, or negatives) are in it.

    Attributes:
        share: `(bins,)` float64, of the anchors' shares.
        even_share: `(bins,)` float64, of the part of the anchors' pairs that lies in the bin: their share if each
            pair had the same.
        count: `(bins,)` int64, pairs.
        hardness: () float64, of the anchors' mean hardness over their pairs.
        gradient_hardness: () float64, of the same with each pair weighted by its share.
        anchors: () int64.
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
    r"""Sum `gradient_shares` over all anchors by the hardness of the pairs, in memory linear in N.

    The hardness of a positive is :math:`1 - c_{ip}`, in [0, 2]; that of a negative is :math:`c_{in}`, in [-1, 1]. Both
    ranges are cut into bins of the same width; a value on an edge belongs to the upper bin, the last has both
    its edges.

    Args:
        embeddings: as for `gradient_shares`, as are the next four.
        labels: see there.
        loss: see there.
        temperature: see there.
        margin: see there.
        bins: at least 1.
        chunk_size: anchors at a time, at least 1; None: as many as one matrix of 16 MiB holds.

    Returns:
        The sums of the positives and of the negatives.

    Raises:
        TypeError: As `gradient_shares`, or if `bins` or `chunk_size` is no integer.
        ValueError: As `gradient_shares`, or if `bins` or `chunk_size` is below 1.

    Examples:
        >>> z = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
        >>> positives, negatives = binned_gradient_shares(z, torch.tensor([0, 0, 0, 1]), bins=4)
        >>> positives.count.tolist(), int(positives.anchors), negatives.count.tolist()
        ([4, 0, 2, 0], 3, [1, 0, 1, 0])
    """
    _check_count("bins", bins)
    if chunk_size is not None:
        _check_count("chunk_size", chunk_size)
    check_arguments(embeddings, labels, loss, temperature, margin)
    rows = len(embeddings)
    size = chunk_size or max(1, CHUNK_BYTES // (max(rows, 1) * max(4, embeddings.element_size())))
    sums = _no_sums(bins, embeddings.device), _no_sums(bins, embeddings.device)
    for start in range(0, rows, size):
        part = slice(start, start + size)
        found = gradient_shares(embeddings, labels, loss=loss, temperature=temperature, margin=margin, anchors=part)
        of_positives = _binned(found.shares, found.positives, 1 - found.cosine, 0.0, bins)
        of_negatives = _binned(found.shares, found.negatives, found.cosine, -1.0, bins)
        sums = sums[0] + of_positives, sums[1] + of_negatives
    return sums


def _binned(shares: Tensor, kind: Tensor, hardness: Tensor, low: float, bins: int) -> ShareBins:
    pulled = (shares * kind).any(dim=1)
    kind = kind[pulled].double()
    shares, hardness = shares[pulled] * kind, hardness[pulled].double()
    even = kind / kind.sum(dim=1, keepdim=True)
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


def _no_sums(bins: int, device: torch.device) -> ShareBins:
    floats = torch.zeros(bins, dtype=torch.float64, device=device)
    return ShareBins(floats, floats, floats.long(), floats.sum(), floats.sum(), floats.long().sum())


def _check_count(name: str, value: int) -> None:
    if not checks.is_int(value):
        raise TypeError(f"Expected argument `{name}` to be an integer, but got {value!r}")
    if value < 1:
        raise ValueError(f"Expected argument `{name}` to be at least 1, but got {value}")
