from .cross_modal import CrossModalLoss
from .global_batch import GlobalBatchLoss
from .learnable_temperature import LearnableTemperature
from .nearest_neighbour import NearestNeighbourLoss
from .pixels import MaskPrototypeLoss, PixelSupConLoss
from .queue import QueueLoss
from .rank_n_contrast import RankNContrastLoss
from .relation_distillation import RelationDistillation
from .supcon import SupConLossIn, SupConLossOut
from .view_consistency import ViewConsistencyLoss
from .wrappers import CrossBatchMemory, SelfSupervisedLoss

__all__ = [  # noqa: RUF022 - by importance
    "SupConLossOut",
    "SupConLossIn",
    "LearnableTemperature",
    "CrossModalLoss",
    "RankNContrastLoss",
    "RelationDistillation",
    "ViewConsistencyLoss",
    "PixelSupConLoss",
    "MaskPrototypeLoss",
    "GlobalBatchLoss",
    "QueueLoss",
    "NearestNeighbourLoss",
    "CrossBatchMemory",
    "SelfSupervisedLoss",
]
