"""Several views of each sample: what makes them, and the layouts of a batch that has them. Fixed changes of images."""

from pml_supcon._layouts import flatten_views, split_views
from pml_supcon.views.augment import contrastive_augmentation, digit_augmentation, evaluation_transform
from pml_supcon.views.change_tasks import transformation_tasks
from pml_supcon.views.changed import ChangedDataset
from pml_supcon.views.changes import Change, GaussianNoise, Grey, Rotation, Sobel
from pml_supcon.views.image_transform import ImageTransform
from pml_supcon.views.in_memory import MultiViewTensorDataset
from pml_supcon.views.multi_view import MultiView, MultiViewDataset
from pml_supcon.views.named import AUGMENTATIONS, augmentation
from pml_supcon.views.seeded import SeededDataset

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
    "SeededDataset",
    "flatten_views",
    "split_views",
    "Change",
    "Grey",
    "Rotation",
    "Sobel",
    "GaussianNoise",
    "ChangedDataset",
    "transformation_tasks",
]
