"""The supervised contrastive losses as pytorch-metric-learning losses."""

from typing import TYPE_CHECKING

from pml_supcon._later import imported_later
from pml_supcon.losses.supcon import SupConLossIn, SupConLossOut

if TYPE_CHECKING:
    from pml_supcon.losses.queue import QueueLoss
    from pml_supcon.losses.wrappers import CrossBatchMemory, SelfSupervisedLoss
else:  # `torch.compiler.disable`, on their methods, imports the compiler, which takes a second
    __getattr__, __dir__ = imported_later(
        __name__, {"queue": ("QueueLoss",), "wrappers": ("CrossBatchMemory", "SelfSupervisedLoss")}
    )

__all__ = [  # noqa: RUF022 - by importance
    "SupConLossOut",
    "SupConLossIn",
    "QueueLoss",
    "CrossBatchMemory",
    "SelfSupervisedLoss",
]
