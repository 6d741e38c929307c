"""Several views of each sample.

A dataset gives `(V, C, H, W)` per sample and torch's default collate makes `(B, V, C, H, W)` of it, with
labels `(B,)`. As rows for a model the batch is `(V * B, C, H, W)`, view by view.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pml_supcon._checks import check_int


class MultiView:
    """Make `V` views of an image: a transform for datasets that calls another, random one `V` times.

    Args:
        transform: From an image to a tensor `(C, H, W)`; the image is whatever it takes (PIL image, array,
            tensor). Or a sequence of `V` such transforms, one per view. All views need one shape and dtype.
        num_views: `V >= 1`. By default 2 for a single transform and the length of a sequence, with which it
            must agree.

    Raises:
        TypeError: If a transform is not callable, if `num_views` is not an integer, or, when called, if a
            view is not a tensor.
        ValueError: If `num_views` is below 1 or not the number of transforms, or, when called, if the views
            differ in shape or dtype.

    Examples:
        >>> views = MultiView(lambda image: image + torch.rand(1), num_views=2)(torch.zeros(3, 8, 8))
        >>> views.shape, bool((views[0] == views[1]).all())
        (torch.Size([2, 3, 8, 8]), False)
    """

    def __init__(
        self,
        transform: Callable[[Any], Tensor] | Sequence[Callable[[Any], Tensor]],
        num_views: int | None = None,
    ) -> None:
        if num_views is not None:
            check_int("num_views", num_views, low=1)
        if isinstance(transform, Sequence):
            self.transforms = list(transform)
        else:
            self.transforms = [transform] * (num_views or 2)
        if not self.transforms or len(self.transforms) != (num_views or len(self.transforms)):
            raise ValueError(
                f"Expected argument `transform` to hold {num_views or 'at least 1'} transforms, one per view, "
                f"but got {len(self.transforms)}"
            )
        for view_transform in self.transforms:
            if not callable(view_transform):
                raise TypeError(
                    f"Expected argument `transform` to be callable, but got {type(view_transform).__name__}"
                )

    @property
    def num_views(self) -> int:
        """The number of views, `V`."""
        return len(self.transforms)

    def __call__(self, image: Any) -> Tensor:
        """Return the views `(V, C, H, W)` of `image`."""
        views = [transform(image) for transform in self.transforms]
        for index, view in enumerate(views):
            if not isinstance(view, Tensor):
                raise TypeError(
                    f"Expected every view to be a tensor, but view {index} is {type(view).__name__}: "
                    "end the transform with one that makes tensors"
                )
            if view.shape != views[0].shape:
                raise ValueError(
                    f"Expected all views to have one shape, but view {index} has {tuple(view.shape)} and view 0 "
                    f"has {tuple(views[0].shape)}: end the transforms with a crop or resize to one size"
                )
            if view.dtype != views[0].dtype:
                raise ValueError(
                    f"Expected all views to have one dtype, but view {index} is {view.dtype} and view 0 is "
                    f"{views[0].dtype}"
                )
        return torch.stack(views)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.transforms})"


class MultiViewDataset(Dataset[tuple[Tensor, Any]]):
    """Make `V` views of the images of a dataset whose own transform cannot be set.

    Args:
        dataset: A map-style dataset of pairs `(image, label)`.
        transform: See `MultiView`.
        num_views: See `MultiView`.

    Examples:
        >>> data = MultiViewDataset([(torch.zeros(3, 8, 8), 5)], lambda image: image + torch.rand(1))
        >>> views, label = data[0]
        >>> views.shape, label
        (torch.Size([2, 3, 8, 8]), 5)
    """

    def __init__(
        self,
        dataset: Any,
        transform: Callable[[Any], Tensor] | Sequence[Callable[[Any], Tensor]],
        num_views: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.transform = MultiView(transform, num_views)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        item = self.dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise TypeError(f"Expected the dataset to give pairs (image, label), but got {type(item).__name__}")
        image, label = item
        return self.transform(image), label

    @property
    def labels(self) -> Any:
        """The `labels`, or else the `targets`, of the dataset; AttributeError where it has neither."""
        return self.dataset.labels if hasattr(self.dataset, "labels") else self.dataset.targets
