"""A miner with a limit on the positives of each anchor, to measure how many SupCon needs."""

from typing import Any

import torch
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor

from pml_supcon._checks import check_choice
from pml_supcon._pml import miners as _pml
from pml_supcon.functional.supcon import checks

CHOICES = ("random", "hardest", "easiest")


class CappedPositivesMiner(BaseMiner):
    r"""A miner that returns at most `cap` positives for each anchor, and all negatives.

    Called as `miner(embeddings, labels, ref_emb=None, ref_labels=None)`, it gives any PML loss its `indices_tuple`. An
    anchor with fewer positives keeps them all. Pairs stand in the order of anchor and positive.

    Args:
        cap: positives an anchor, >= 1.
        choose: which ones: "random" (uniformly, anew at each call), "hardest" (farthest from the anchor by the miner's
            `distance`) or "easiest" (nearest); of equally far ones those with the lower index.
        generator: where "random" draws from, on the CPU, so that all devices choose alike; None: torch's global one.
        **kwargs: PML's own: `distance` (default: Euclidean of normalised rows), `collect_stats`.

    Shape:
        - embeddings: `(N, D)`, floating point; half precision is ranked in float32, autocast or not.
        - labels: `(N,)`.
        - ref_emb, ref_labels: `(M, D)` and `(M,)`, which positives and negatives then come from.
        - output: int64 `(a1, p, a2, n)`: positive pairs, negative pairs; empty where there are none.

    Raises:
        ValueError: `cap`, `choose` or the generator's device do not fit.
        TypeError: `generator` is none.

    Note:
        Where references hold the batch itself (PML's `CrossBatchMemory`), an anchor's own row is one of its positives,
        the easiest; the memory takes it out after the miner has chosen. `SupConLossOut(positives_cap=...)` is a cap
        without pairs being listed, by order in the batch.

    Examples:
        >>> import torch
        >>> from pml_supcon import miners
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0], [0.6, 0.8]])
        >>> miner = miners.CappedPositivesMiner(cap=1, choose="hardest")
        >>> anchors, positives, _, _ = miner(embeddings, torch.tensor([0, 0, 0, 1]))
        >>> anchors.tolist(), positives.tolist()
        ([0, 1, 2], [2, 2, 0])
    """

    def __init__(
        self, cap: int, *, choose: str = "random", generator: torch.Generator | None = None, **kwargs: Any
    ) -> None:
        if not checks.is_int(cap) or cap < 1:
            raise ValueError(f"Expected argument `cap` to be an integer >= 1, but got {cap!r}")
        check_choice("choose", choose, CHOICES)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"Expected argument `generator` to be a torch.Generator or None, but got {type(generator).__name__}"
            )
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(f"Expected argument `generator` to be on the CPU, but got one on {generator.device}")
        super().__init__(**kwargs)
        self.cap = int(cap)
        self.choose = choose
        self.generator = generator
        self.add_to_recordable_attributes(list_of_names=["cap"], is_stat=False)

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> tuple[Tensor, ...]:
        """Indices of the chosen pairs; PML calls it without gradient."""
        batch = _pml.Batch(embeddings, labels, ref_emb, ref_labels)
        a1, p, a2, n = _pml.all_pairs(labels, ref_labels)
        if self.choose == "random":
            # in float64 no two draws are equal, so that none is preferred
            key = torch.rand(len(a1), generator=self.generator, dtype=torch.float64).to(a1.device)
        else:
            key = _pml.distances(self.distance, batch)[a1, p]
            key = -key if self.choose == "hardest" else key
        keep = first_of_each(a1, key, self.cap, len(embeddings))
        return a1[keep], p[keep], a2, n


def first_of_each(anchors: Tensor, key: Tensor, number: int, rows: int) -> Tensor:
    """Return the mask of pairs with one of the `number` lowest keys of their anchor (ties by index), bool `(T,)`.

    Args:
        anchors: `(T,)`, in [0, rows), ascending.
        key: `(T,)`.
        number: how many an anchor, >= 1.
        rows: how many anchors there may be.
    """
    order = key.argsort(stable=True)
    order = order[anchors[order].argsort(stable=True)]  # by anchor, then by key
    count = torch.bincount(anchors, minlength=rows)
    start = count.cumsum(0) - count
    rank = torch.arange(len(anchors), device=anchors.device) - start[anchors]  # anchors ascend, as in this order
    keep = torch.zeros_like(anchors, dtype=torch.bool)
    keep[order] = rank < number
    return keep
