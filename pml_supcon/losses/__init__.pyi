from .global_batch import GlobalBatchLoss
from .queue import QueueLoss
from .supcon import SupConLossIn, SupConLossOut
from .wrappers import CrossBatchMemory, SelfSupervisedLoss

__all__ = [  # noqa: RUF022 - by importance
    "SupConLossOut",
    "SupConLossIn",
    "GlobalBatchLoss",
    "QueueLoss",
    "CrossBatchMemory",
    "SelfSupervisedLoss",
]
