"""Online hard example mining (Shrivastava, Gupta & Girshick, CVPR 2016), over pairs or triplets."""

import numbers
from typing import Any

from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor

from pml_supcon._checks import check_choice
from pml_supcon._pml import miners as _pml
from pml_supcon.functional.supcon import checks
from pml_supcon.miners import _ranking

KINDS = ("pairs", "triplets")
SMALLEST_PART = 2**16  # triplets; smaller parts would be more steps than work


class OnlineHardExampleMiner(BaseMiner):
    r"""The hardest share of a batch: the pairs, or the triplets, with the highest loss (OHEM).

    `kind="pairs"`: `ceil(share * number)` of the positive pairs, and apart from them of the negative pairs.
    `kind="triplets"`: the same share of all triplets. Where there is one, one is chosen. Hardest first; of equally hard
    ones those with the lower indices, anchors first. Called as `miner(embeddings, labels, ref_emb=None,
    ref_labels=None)`, it gives any PML loss its `indices_tuple`.

    Args:
        share: in (0, 1].
        kind: "pairs" or "triplets".
        loss: what is hard. None: positives far from the anchor and negatives near it by the miner's `distance`;
            triplets by `d(a, p) - d(a, n)` (of a similarity the negative counts as the distance). Or a PML loss with a
            term for each pair (`ContrastiveLoss`) or triplet (`TripletMarginLoss`, `MarginLoss`), to rank by these.
            Terms that a margin makes 0 are equally hard, and are chosen where the share reaches so far.
        most: a cap, >= 1, on the triplets chosen, or on the positive pairs and on the negative pairs; None: no cap.
        **kwargs: PML's own: `distance` (default: Euclidean of normalised rows), `collect_stats`.

    Shape:
        - embeddings: `(N, D)`, floating point; half precision is ranked in float32, autocast or not.
        - labels: `(N,)`.
        - ref_emb, ref_labels: `(M, D)` and `(M,)`, which positives and negatives then come from.
        - output: int64 `(a, p, a, n)` for pairs, `(a, p, n)` for triplets; empty where there are none.

    Raises:
        ValueError: `share`, `kind` or `most` out of range; a `distance` beside a `loss`, which has its own.
        TypeError: `loss` is no PML loss, or (when called) one without a term for each pair or triplet.

    Note:
        All triplets are looked at, but never held: beyond what is chosen, memory is that of some `(N, M)` matrices. A
        loss sees the triplets in parts, its term for one must not depend on the others. A term counts without the
        loss's reducer and regulariser.

    Examples:
        >>> import torch
        >>> from pml_supcon import miners
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0], [0.6, 0.8]])
        >>> miner = miners.OnlineHardExampleMiner(share=0.25, kind="triplets")
        >>> [indices.tolist() for indices in miner(embeddings, torch.tensor([0, 0, 0, 1]))]  # 2 of 6
        [[1, 0], [2, 2], [3, 3]]
    """

    def __init__(
        self,
        share: float = 0.25,
        *,
        kind: str = "pairs",
        loss: BaseMetricLossFunction | None = None,
        most: int | None = None,
        **kwargs: Any,
    ) -> None:
        number = isinstance(share, numbers.Real) and not isinstance(share, bool)
        if not number or not 0 < share <= 1:
            raise ValueError(f"Expected argument `share` to be a number in (0, 1], but got {share!r}")
        check_choice("kind", kind, KINDS)
        if most is not None and (not checks.is_int(most) or most < 1):
            raise ValueError(f"Expected argument `most` to be an integer >= 1 or None, but got {most!r}")
        if loss is not None:
            _pml.check_loss(loss)
            if kwargs.get("distance") is not None:
                raise ValueError("Expected no `distance` with a `loss`, which has its own, but got both")
        super().__init__(**kwargs)
        self.share = float(share)
        self.kind = kind
        self.loss = loss
        self.most = None if most is None else int(most)
        self.add_to_recordable_attributes(list_of_names=["share"], is_stat=False)

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> tuple[Tensor, ...]:
        """Return the indices of the hardest; PML calls it without gradient."""
        batch = _pml.Batch(embeddings, labels, ref_emb, ref_labels)
        pairs = _pml.all_pairs(labels, ref_labels)
        return self._hardest_pairs(batch, pairs) if self.kind == "pairs" else self._hardest_triplets(batch, pairs)

    def _hardest_pairs(self, batch: _pml.Batch, pairs: _pml.Pairs) -> tuple[Tensor, ...]:
        a1, p, a2, n = pairs
        if self.loss is None:
            far = _pml.distances(self.distance, batch)
            positive, negative = far[a1, p], -far[a2, n]
        else:
            expected = {"pos_pair": len(a1), "neg_pair": len(a2)}
            positive, negative = _pml.loss_terms(self.loss, batch, pairs, expected)
        hard_p = _ranking.highest(positive, _ranking.number_of(self.share, len(a1), self.most))
        hard_n = _ranking.highest(negative, _ranking.number_of(self.share, len(a2), self.most))
        return a1[hard_p], p[hard_p], a2[hard_n], n[hard_n]

    def _hardest_triplets(self, batch: _pml.Batch, pairs: _pml.Pairs) -> tuple[Tensor, ...]:
        rows, references = len(batch.embeddings), len(batch.ref_emb)
        total = _ranking.number_of_triplets(pairs.pos_anchors, pairs.neg_anchors, rows)
        if total == 0:
            nothing = pairs.positives[:0]
            return nothing, nothing.clone(), nothing.clone()
        far = _pml.distances(self.distance, batch) if self.loss is None else None
        room = max(rows * references, SMALLEST_PART)
        hardest = _ranking.RunningHighest(_ranking.number_of(self.share, total, self.most), room)
        for part in _ranking.triplets(*pairs, anchors=rows, pairs_a_part=room // references):
            hardest.add(self._hardness(batch, part, far), part)
        anchors, positives, negatives = hardest.items()
        return anchors, positives, negatives

    def _hardness(self, batch: _pml.Batch, part: Tensor, far: Tensor | None) -> Tensor:
        """Return the hardness of the triplets of a part, `(T,)`."""
        a, p, n = part
        if far is not None:
            return far[a, p] - far[a, n]
        (terms,) = _pml.loss_terms(self.loss, batch, (a, p, n), {"triplet": part.shape[1]})
        return terms
