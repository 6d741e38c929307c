"""Two towers, such as images and texts, contrasted with each other (CLIP, and UniCL with labels)."""

from typing import Any

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor, nn

from pml_supcon._checks import check_type
from pml_supcon._tensors import check_dense
from pml_supcon.distributed.shards import LossInputs
from pml_supcon.functional.supcon import checks
from pml_supcon.losses.rank_n_contrast import RankNContrastLoss


class CrossModalLoss(nn.Module):
    r"""A loss between the rows of two towers in both directions: CLIP's without labels, UniCL's with labels.

        L = [ mean_i l(a_i against all b) + mean_j l(b_j against all a) ] / 2

    Anchors of one tower are contrasted with all rows of the other, and never with rows of their own tower. Positives
    are the rows with the anchor's label, the partner included. Without labels row ``i`` of one tower and row ``i`` of
    the other are the only positives of each other.

    Args:
        loss: the loss of one direction, called with ``ref_emb``: ``SupConLossOut`` or ``SupConLossIn`` with its
            temperature and backend, or a loss of PML. Its mean, or its ``reducer``, is taken in each direction.

    Shape:
        - embeddings: ``(N, D)``, the rows of the first tower.
        - ref_emb: ``(M, D)``, the rows of the second tower, of the same width, dtype and device.
        - labels: ``(N,)`` integers, or None; what the ``target`` of the loss, or ``RankNContrastLoss``, takes.
        - ref_labels: ``(M,)``, likewise; default: ``labels``, for towers with the same samples in the same order.

    Raises:
        TypeError: If the loss is not a loss of this package or of PML for one batch.
        ValueError: If shapes, dtypes or devices do not fit; if towers of different sizes come without labels of both;
            or if the loss has an option that refers to the views of one batch: ``num_views``, ``positives_cap``,
            ``contrast_mode="one"``.

    Note:
        Memory is linear on the backends "tiled" and "triton": no matrix of all pairs is kept. On several processes,
        ``GlobalBatchLoss(CrossModalLoss(...))`` contrasts the rows of each tower with those of all processes; call it
        with keywords, ``loss(rows_a, ref_emb=rows_b, labels=labels)``.

    Source:
        Radford et al., *Learning Transferable Visual Models From Natural Language Supervision* (ICML 2021); Yang et
        al., *Unified Contrastive Learning in Image-Text-Label Space* (CVPR 2022), equations 2 to 4 (the temperature
        here is the inverse of theirs; ``LearnableTemperature`` learns it as they do).

    Examples:
        >>> import torch
        >>> from pml_supcon import losses
        >>> loss = losses.CrossModalLoss(losses.SupConLossOut(temperature=0.07))
        >>> images, texts = torch.randn(2, 8, 4)
        >>> clip = loss(images, texts)
        >>> bool(clip == loss(images, texts, torch.arange(8)))
        True
        >>> loss(images, texts[:5], labels=torch.arange(8) % 3, ref_labels=torch.arange(5) % 3).ndim
        0
    """

    takes_pairs = False

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        check_type("loss", loss, BaseMetricLossFunction, "a SupConLossOut, SupConLossIn or a loss of PML")
        for option, default in {"num_views": None, "positives_cap": None, "contrast_mode": "all"}.items():
            value = getattr(loss, option, default)
            if value != default:
                raise ValueError(
                    f"Expected a loss with {option}={default!r}, since rows of two towers are no views of one batch, "
                    f"but got {option}={value!r}"
                )
        self.loss = loss

    def forward(
        self, embeddings: Tensor, ref_emb: Tensor, labels: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> Tensor:
        """Return the mean of both directions, a scalar; see the class for shapes."""
        _, labels, _, ref_labels, *_ = self.check_shard(LossInputs(embeddings, labels, ref_emb, ref_labels))
        if labels is None:
            labels = torch.arange(len(embeddings), device=embeddings.device)
        if ref_labels is None or ref_labels is labels:
            ref_labels = labels.view_as(labels)  # the same object would tell PML that rows meet themselves
        one: Tensor = self.loss(embeddings, labels, ref_emb=ref_emb, ref_labels=ref_labels)
        other: Tensor = self.loss(ref_emb, ref_labels, ref_emb=embeddings, ref_labels=labels)
        return (one + other) / 2

    def check_shard(self, own: LossInputs) -> LossInputs:
        """Return the towers, or the shards of them on one process, with labels on their device, or raise."""
        embeddings, labels, ref_emb, ref_labels, *_ = own
        if ref_emb is None:
            raise ValueError(
                "Expected the rows of the second tower as `ref_emb`: `loss(rows_a, ref_emb=rows_b, labels=labels)`, "
                "but got one tower"
            )
        checks.check_embeddings("embeddings", embeddings, dims=(2,))
        check_dense("embeddings", embeddings, values=False)
        checks.check_fits(embeddings, "ref_emb", ref_emb)
        if labels is None and ref_labels is not None:
            raise ValueError("Expected `labels` together with `ref_labels`, but got `ref_labels` alone")
        target: Any = getattr(self.loss, "target", None)
        if labels is None and (target is not None or isinstance(self.loss, RankNContrastLoss)):
            raise ValueError("Expected `labels` with a RankNContrastLoss or a target, but got None")
        if ref_labels is None and len(embeddings) != len(ref_emb):
            raise ValueError(
                f"Expected as many rows in `ref_emb` as in `embeddings`, {len(embeddings)}, or both `labels` and "
                f"`ref_labels`, but got {len(ref_emb)} rows"
            )
        if isinstance(self.loss, RankNContrastLoss):
            return self.loss.check_shard(own if ref_labels is not None else own._replace(ref_labels=labels))
        if labels is not None:
            labels = checks.check_labels("labels", labels, len(embeddings), embeddings.device, target)
        if ref_labels is not None:
            ref_labels = checks.check_labels("ref_labels", ref_labels, len(ref_emb), embeddings.device, target)
        return own._replace(labels=labels, ref_labels=ref_labels)
