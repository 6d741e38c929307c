"""The supervised contrastive losses as pytorch-metric-learning losses."""

from pml_supcon.losses.supcon import SupConLossIn, SupConLossOut
from pml_supcon.losses.wrappers import CrossBatchMemory, SelfSupervisedLoss

__all__ = ["SupConLossOut", "SupConLossIn", "CrossBatchMemory", "SelfSupervisedLoss"]  # noqa: RUF022 - by importance
