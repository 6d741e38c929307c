"""The losses as pure functions of tensors: torch only, one loss per anchor, no host library."""

from pml_supcon.functional.pixels import draw_pixels, mask_prototype_loss
from pml_supcon.functional.rank_n_contrast import rank_n_contrast_loss
from pml_supcon.functional.relation_distillation import relation_distillation_loss
from pml_supcon.functional.supcon import AnchorLosses, group_supcon_loss, supcon_loss
from pml_supcon.functional.view_consistency import view_consistency_loss

__all__ = [  # noqa: RUF022 - functions first, then what they return
    "supcon_loss",
    "group_supcon_loss",
    "rank_n_contrast_loss",
    "relation_distillation_loss",
    "view_consistency_loss",
    "mask_prototype_loss",
    "draw_pixels",
    "AnchorLosses",
]
