"""PML's loss wrappers that accept losses by class name, with ours on their lists."""

import torch
from pytorch_metric_learning import losses as pml
from torch import Tensor

OWN_LOSSES = ["SupConLossOut", "SupConLossIn"]


class CrossBatchMemory(pml.CrossBatchMemory):
    """PML's memory of past embeddings (Wang et al., CVPR 2020), which also accepts our losses.

    Arguments and calls are those of `pytorch_metric_learning.losses.CrossBatchMemory`: embeddings `(N, D)`, labels
    `(N,)`. It hands the loss the list of all pairs between batch and memory, so that `positives_cap` and
    `contrast_mode="one"` are refused there.

    Example:
        >>> import torch
        >>> from pml_supcon import losses
        >>> loss = losses.CrossBatchMemory(losses.SupConLossOut(), embedding_size=4, memory_size=16)
        >>> loss(torch.randn(8, 4), torch.arange(4).repeat(2)).ndim
        0
    """

    @staticmethod
    def supported_losses() -> list[str]:
        """The names of the losses that it accepts."""
        return [*pml.CrossBatchMemory.supported_losses(), *OWN_LOSSES]


class SelfSupervisedLoss(pml.SelfSupervisedLoss):
    """PML's wrapper for two views without labels, which also accepts our losses.

    Arguments and calls are those of `pytorch_metric_learning.losses.SelfSupervisedLoss`: `loss(embeddings, ref_emb)`,
    each `(N, D)`. Our losses alone do the same for any number of views: `SupConLossOut()(embeddings)` with `(B, V, D)`.

    Example:
        >>> import torch
        >>> from pml_supcon import losses
        >>> one, other = torch.randn(8, 4), torch.randn(8, 4)
        >>> wrapped = losses.SelfSupervisedLoss(losses.SupConLossOut())(one, other)
        >>> bool(torch.isclose(wrapped, losses.SupConLossOut()(torch.stack([one, other], dim=1))))
        True
    """

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        """The loss of two views `(N, D)`, each row's label its number."""
        # PML's own forward, but with the labels on the device of the embeddings
        labels = torch.arange(embeddings.shape[0], device=embeddings.device)
        if self.symmetric:
            loss: Tensor = self.loss(torch.cat([embeddings, ref_emb]), labels.repeat(2))
        else:
            loss = self.loss(embeddings, labels, ref_emb=ref_emb, ref_labels=labels.clone())
        return loss

    @staticmethod
    def supported_losses() -> list[str]:
        """The names of the losses that it accepts."""
        return [*pml.SelfSupervisedLoss.supported_losses(), *OWN_LOSSES]
