"""A miner with a limit on the positives of each anchor, to measure how many SupCon needs."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pml_supcon._checks import check_choice, check_int, check_type
from pml_supcon._pml import miners as _pml

Choice = Literal["random", "hardest", "easiest"]


class CappedPositivesMiner(_pml.CheckedMiner):
    r"""A miner that returns at most ``cap`` positives for each anchor, and all negatives.

    The call ``miner(embeddings, labels, ref_emb=None, ref_labels=None)`` returns the ``indices_tuple`` of any PML loss.
    An anchor with fewer positives keeps them all. Pairs are sorted by anchor, then by positive.

    Args:
        cap: Most positives of an anchor, ``>= 1``.
        choose: "random" (uniform, drawn anew at each call), "hardest" (farthest from the anchor by the miner's
            ``distance``) or "easiest" (nearest); among equal distances the lower index.
        generator: CPU generator of the "random" draws, so that all devices choose alike. None: PyTorch's global one.
        **kwargs: PML's own: ``distance`` (default: Euclidean, of normalised rows) and ``collect_stats``.

    Shape:
        - embeddings: ``(N, D)``, floating point; half precision is ranked in float32, with or without autocast.
        - labels: ``(N,)``, integers, on any device.
        - ref_emb, ref_labels: ``(M, D)`` and ``(M,)``, the source of positives and negatives if given.
        - output: int64 ``(a1, p, a2, n)``, positive pairs and negative pairs; empty if there are none.

    Raises:
        TypeError: If ``cap`` is not an integer, or ``generator`` is not a generator.
        ValueError: If ``cap`` is below 1, ``choose`` is unknown, or the generator is not on the CPU.

    Note:
        If the references contain the batch itself (PML's ``CrossBatchMemory``), an anchor's own row is one of its
        positives, the easiest; the memory removes it after the miner has chosen. ``SupConLossOut(positives_cap=...)``
        caps the positives by their order in the batch, without lists of pairs.

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
        cap = check_int("cap", cap, low=1)
        check_choice("choose", choose, get_args(Choice))
        check_type("generator", generator, (torch.Generator, type(None)), "a torch.Generator or None")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(f"Expected argument `generator` to be on the CPU, but got one on {generator.device}")
        super().__init__(**kwargs)
        self.cap = cap
        self.choose = choose
        self.generator = generator
        self.add_to_recordable_attributes(list_of_names=["cap"], is_stat=False)

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> tuple[Tensor, ...]:
        """Return the indices of the chosen pairs; PML calls it without gradient."""
        batch = _pml.Batch(embeddings, labels, ref_emb, ref_labels)
        a1, p, a2, n = _pml.all_pairs(labels, ref_labels)
        # one key for each positive pair, (pairs,): the lowest keys of an anchor win
        if self.choose == "random":
            # in float64 no two draws are equal, so that no pair is preferred
            key = torch.rand(len(a1), generator=self.generator, dtype=torch.float64).to(a1.device)
        else:
            key = _pml.distances(self.distance, batch)[a1, p]
            key = -key if self.choose == "hardest" else key
        keep = first_of_each(a1, key, self.cap, len(embeddings))
        return a1[keep], p[keep], a2, n


def first_of_each(anchors: Tensor, key: Tensor, number: int, rows: int) -> Tensor:
    """Return the mask of pairs with one of the ``number`` lowest keys of their anchor (ties by index), bool ``(T,)``.

    ``anchors`` ``(T,)`` is ascending, in ``[0, rows)``.
    """
    # (T,): pairs sorted by anchor, then by key; both sorts are stable, so that ties keep their order
    order = key.argsort(stable=True)
    order = order[anchors[order].argsort(stable=True)]
    # place of each sorted pair among the pairs of its anchor; `anchors` itself is ascending, as in this order
    count = torch.bincount(anchors, minlength=rows)
    start = count.cumsum(0) - count
    rank = torch.arange(len(anchors), device=anchors.device) - start[anchors]
    keep = torch.zeros_like(anchors, dtype=torch.bool)
    keep[order] = rank < number
    return keep
