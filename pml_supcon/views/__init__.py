"""Random views of each sample, and fixed changes of images for evaluation."""

from pml_supcon._geometry import map_points
from pml_supcon._layouts import flatten_views, split_views
from pml_supcon.views.augmentations import (
    AUGMENTATIONS,
    augmentation,
    contrastive_augmentation,
    digit_augmentation,
    evaluation_transform,
)
from pml_supcon.views.batch_mix import BatchMix
from pml_supcon.views.changed_dataset import ChangedDataset
from pml_supcon.views.changes import Change, GaussianNoise, Grey, Rotation, Sobel, transformation_tasks
from pml_supcon.views.image_transform import ImageTransform
from pml_supcon.views.multi_view import MultiView, MultiViewDataset, MultiViewTensorDataset, SeededDataset

__all__ = [  # noqa: RUF022 - flow order
    "AUGMENTATIONS",
    "augmentation",
    "contrastive_augmentation",
    "digit_augmentation",
    "evaluation_transform",
    "ImageTransform",
    "MultiView",
    "MultiViewDataset",
    "MultiViewTensorDataset",
    "BatchMix",
    "SeededDataset",
    "flatten_views",
    "split_views",
    "map_points",
    "Change",
    "Grey",
    "Rotation",
    "Sobel",
    "GaussianNoise",
    "ChangedDataset",
    "transformation_tasks",
]
