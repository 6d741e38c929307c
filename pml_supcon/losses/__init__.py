"""The supervised contrastive losses as pytorch-metric-learning losses."""

from pml_supcon.losses.queue import QueueLoss
from pml_supcon.losses.supcon import SupConLossIn, SupConLossOut
from pml_supcon.losses.wrappers import CrossBatchMemory, SelfSupervisedLoss

__all__ = [  # noqa: RUF022 - by importance
    "SupConLossOut",
    "SupConLossIn",
    "QueueLoss",
    "CrossBatchMemory",
    "SelfSupervisedLoss",
]
