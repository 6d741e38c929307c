"""The share of a loss's gradient that hard pairs receive."""

from typing import Any

import numpy as np
import torch

from pml_supcon._arrays import Array, as_embeddings, as_labels
from pml_supcon._checks import check_int
from pml_supcon.functional.gradient_shares import MARGIN, TEMPERATURE, check_arguments
from pml_supcon.functional.share_bins import ShareBins, binned_gradient_shares

BINS = 20
BATCHES = 10


def hard_mining_curve(
    embeddings: Array,
    labels: Array,
    *,
    loss: str = "supcon_out",
    temperature: float = TEMPERATURE,
    margin: float = MARGIN,
    bins: int = BINS,
    batch_size: int | None = None,
    batches: int = BATCHES,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Measure the share of the gradient that positives and negatives receive against their hardness.

    The gradient of each anchor's loss is split over its positives, and over its negatives, into shares that sum to 1
    (see `functional.gradient_shares`). For each bin of hardness, ``share`` is the sum of an anchor's shares in the bin,
    and ``even_share`` is the fraction of the anchor's pairs in the bin; both are means over anchors, and each sums to 1
    over the bins. Their ratio exceeds 1 where pairs receive more gradient than under equal weights.

    Hardness is :math:`1 - \cos` for positives, in [0, 2], and :math:`\cos` for negatives, in [-1, 1].

    An anchor is counted if at least one of its positives (or negatives) has a gradient. With "triplet" it needs a
    triplet with a loss above 0.

    Without ``batch_size``, time is quadratic in the number of rows, and memory is not.

    Args:
        embeddings: ``(N, D)`` floats without a zero row, converted to float64 and normalised inside.
        labels: ``(N,)`` integers.
        loss: "supcon_out", "supcon_in" or "triplet".
        temperature: Temperature of the supcon losses, above 0.
        margin: Margin of "triplet", at least 0.
        bins: Number of bins of equal width, at least 1.
        batch_size: Rows of a batch, between 2 and N, drawn without repetition; only pairs within a batch count. None
            takes all rows as one batch.
        batches: Number of batches drawn, at least 1; has no effect without ``batch_size``.
        seed: Seed of the draws, at least 0.

    Returns:
        For "positives" and "negatives" a list of bins with ``hardness`` (the bin's centre), ``share``, ``even_share``,
        ``ratio`` (None in a bin without pairs) and ``count`` (the pairs of counted anchors). "summary" has for both
        ``anchors`` (the number of counted anchors), ``mean_hardness`` (of their pairs) and ``gradient_hardness`` (the
        mean weighted by share). Without a counted anchor, shares are 0, and ratios and both means are None.

    Raises:
        TypeError: If embeddings are not floating point, or labels, counts or ``seed`` not integers.
        ValueError: If a shape or an option is wrong, a row is zero or not finite, or no row has a positive in any
            batch.

    Examples:
        >>> z = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
        >>> curve = hard_mining_curve(z, np.array([0, 0, 0, 1]), bins=4)
        >>> for one in curve["positives"]:
        ...     print(one["hardness"], one["count"], round(one["share"], 2), round(one["even_share"], 2))
        0.25 4 0.61 0.67
        0.75 0 0.0 0.0
        1.25 2 0.39 0.33
        1.75 0 0.0 0.0
    """
    for name, value in (("bins", bins), ("batches", batches), ("batch_size", 2 if batch_size is None else batch_size)):
        check_int(name, value, low=1)
    check_int("seed", seed, low=0)
    matrix = torch.from_numpy(as_embeddings(embeddings, "embeddings", dtype=np.float64))
    ids = torch.from_numpy(as_labels(labels, "labels", len(matrix)))
    check_arguments(matrix, ids, loss, temperature, margin)
    sums: tuple[ShareBins, ShareBins] | None = None
    for rows in _draw(len(matrix), batch_size, batches, seed):
        if len(ids[rows].unique()) == len(rows):
            continue  # no positives, so no anchor has a loss
        found = binned_gradient_shares(
            matrix[rows], ids[rows], loss=loss, temperature=temperature, margin=margin, bins=bins
        )
        sums = found if sums is None else (sums[0] + found[0], sums[1] + found[1])
    if sums is None:
        where = "" if batch_size is None else f" within {batches} batches of {batch_size}"
        raise ValueError(f"Expected `labels` with two equal ones{where}, but no row has a positive")
    positives, negatives = sums
    return {
        "positives": _curve(positives, 0.0),
        "negatives": _curve(negatives, -1.0),
        "summary": {"positives": _summary(positives), "negatives": _summary(negatives)},
    }


def _draw(rows: int, batch_size: int | None, batches: int, seed: int) -> list[torch.Tensor]:
    if batch_size is None:
        return [torch.arange(rows)]
    if not 2 <= batch_size <= rows:
        raise ValueError(f"Expected argument `batch_size` to be between 2 and {rows}, the rows, but got {batch_size}")
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(rows, generator=generator)[:batch_size] for _ in range(batches)]


def _curve(sums: ShareBins, low: float) -> list[dict[str, Any]]:
    width = 2 / len(sums.count)
    anchors = max(int(sums.anchors), 1)
    return [
        {
            "hardness": round(low + (place + 0.5) * width, 12),
            "share": share / anchors,
            "even_share": even / anchors,
            "ratio": share / even if even else None,
            "count": count,
        }
        for place, (share, even, count) in enumerate(
            zip(sums.share.tolist(), sums.even_share.tolist(), sums.count.tolist(), strict=True)
        )
    ]


def _summary(sums: ShareBins) -> dict[str, Any]:
    anchors = int(sums.anchors)
    totals = {"mean_hardness": sums.hardness, "gradient_hardness": sums.gradient_hardness}
    return {"anchors": anchors} | {name: float(total) / anchors if anchors else None for name, total in totals.items()}
