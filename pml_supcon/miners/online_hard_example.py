"""Online hard example mining (Shrivastava, Gupta & Girshick, CVPR 2016), over pairs or triplets."""

from typing import Any

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor

from pml_supcon._checks import check_choice, check_fraction, check_int
from pml_supcon._pml import miners as _pml
from pml_supcon.miners import _ranking

KINDS = ("pairs", "triplets")
SMALLEST_PART = 2**16  # triplets; smaller parts cost more in calls than in work


class OnlineHardExampleMiner(_pml.CheckedMiner):
    r"""A miner that returns the share of the pairs, or of the triplets, with the highest loss (OHEM).

    ``kind="pairs"`` chooses ``ceil(share * number)`` of the positive pairs and, separately, of the negative pairs;
    ``kind="triplets"`` chooses the same share of all triplets. At least one is chosen if there is any. The hardest is
    first; equally hard ones are sorted by index, anchors first. The call ``miner(embeddings, labels, ref_emb=None,
    ref_labels=None)`` returns the ``indices_tuple`` of any PML loss.

    Args:
        share: Share to choose, in ``(0, 1]``.
        kind: "pairs" or "triplets".
        loss: The measure of hardness. None: positives far from the anchor and negatives near it by the miner's
            ``distance``, triplets by ``d(a, p) - d(a, n)`` (a similarity counts as a negative distance). Or a PML loss
            with a term for each pair (``ContrastiveLoss``) or triplet (``TripletMarginLoss``, ``MarginLoss``): its
            terms rank. Terms that a margin sets to 0 are equally hard, and are chosen if the share exceeds the rest.
        most: Cap ``>= 1`` on the chosen triplets, or on the positive pairs and on the negative pairs. None: no cap.
        **kwargs: PML's own: ``distance`` (default: Euclidean, of normalised rows) and ``collect_stats``.

    Shape:
        - embeddings: ``(N, D)``, floating point; half precision is ranked in float32, with or without autocast.
        - labels: ``(N,)``, integers, on any device.
        - ref_emb, ref_labels: ``(M, D)`` and ``(M,)``, the source of positives and negatives if given.
        - output: int64 ``(a, p, a, n)`` for pairs, ``(a, p, n)`` for triplets; empty if there are none.

    Raises:
        TypeError: If ``share`` is not a number, ``most`` is not an integer, or ``loss`` is not a PML loss; in a call,
            if ``loss`` has no term for each pair or triplet.
        ValueError: If ``share``, ``kind`` or ``most`` is out of range, or if ``distance`` comes with a ``loss``, which
            has its own.

    Note:
        All triplets are ranked, but never stored together: beyond the chosen ones, memory is a few ``(N, M)`` matrices.
        A loss receives the triplets in parts, so its term of one triplet must not depend on the others. The loss's
        reducer and regulariser are not applied to the terms.

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
        share = check_fraction("share", share, one=True)
        check_choice("kind", kind, KINDS)
        if loss is not None:
            _pml.check_loss(loss)
            if kwargs.get("distance") is not None:
                raise ValueError("Expected no `distance` with a `loss`, which has its own, but got both")
        super().__init__(**kwargs)
        self.share = share
        self.kind = kind
        self.loss = loss
        self.most = None if most is None else check_int("most", most, low=1)
        self.add_to_recordable_attributes(list_of_names=["share"], is_stat=False)

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> tuple[Tensor, ...]:
        """Return the indices of the hardest pairs or triplets; PML calls it without gradient."""
        batch = _pml.Batch(embeddings, labels, ref_emb, ref_labels)
        pairs = _pml.all_pairs(labels, ref_labels)
        return self._hardest_pairs(batch, pairs) if self.kind == "pairs" else self._hardest_triplets(batch, pairs)

    def _hardest_pairs(self, batch: _pml.Batch, pairs: _pml.Pairs) -> tuple[Tensor, ...]:
        a1, p, a2, n = pairs
        # hardness of the positive pairs and of the negative pairs, 1-D each
        if self.loss is None:
            far = _pml.distances(self.distance, batch)
            positive, negative = far[a1, p], -far[a2, n]
        else:
            expected = {"pos_pair": len(a1), "neg_pair": len(a2)}
            positive, negative = _pml.loss_terms(self.loss, batch, pairs, expected)
        # the hardest share of each
        hard_p = _ranking.highest(positive, _ranking.number_of(self.share, len(a1), self.most))
        hard_n = _ranking.highest(negative, _ranking.number_of(self.share, len(a2), self.most))
        return a1[hard_p], p[hard_p], a2[hard_n], n[hard_n]

    def _hardest_triplets(self, batch: _pml.Batch, pairs: _pml.Pairs) -> tuple[Tensor, ...]:
        rows, references = len(batch.embeddings), len(batch.ref_emb)
        # each positive pair forms a triplet with each negative of its anchor
        total = int(torch.bincount(pairs.neg_anchors, minlength=rows)[pairs.pos_anchors].sum())
        if total == 0:
            return (pairs.positives[:0],) * 3
        far = _pml.distances(self.distance, batch) if self.loss is None else None
        # score the triplets in parts of about N * M, and keep only the highest so far
        room = max(rows * references, SMALLEST_PART)
        hardest = _ranking.RunningHighest(_ranking.number_of(self.share, total, self.most), room)
        for part in _ranking.triplets(*pairs, anchors=rows, pairs_a_part=room // references):
            a, p, n = part
            if far is None:
                (hardness,) = _pml.loss_terms(self.loss, batch, (a, p, n), {"triplet": part.shape[1]})
            else:
                hardness = far[a, p] - far[a, n]
            hardest.add(hardness, part)
        return hardest.items().unbind()
