"""Several views of each sample: what makes them, and the layouts of a batch that has them."""

from pml_supcon.views.augment import contrastive_augmentation, digit_augmentation, evaluation_transform
from pml_supcon.views.in_memory import MultiViewTensorDataset
from pml_supcon.views.multi_view import MultiView, MultiViewDataset, flatten_views, split_views

__all__ = [  # noqa: RUF022 - flow order
    "contrastive_augmentation",
    "digit_augmentation",
    "evaluation_transform",
    "MultiView",
    "MultiViewDataset",
    "MultiViewTensorDataset",
    "flatten_views",
    "split_views",
]
