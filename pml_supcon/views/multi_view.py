"""Datasets of several views per sample.

The parts compose, from the inside to the outside:

- an ``ImageTransform`` (``augmentation("simclr", 32, ...)``) augments one image or a batch; a batch on a CPU goes
  through its steps in parts that fit the cache (``InParts``);
- ``MultiViewTensorDataset(images, labels, transform)`` calls it once for all ``V * B`` views of a batch in memory, or
  ``MultiViewDataset(dataset, transform)`` calls it ``V`` times per image of any other dataset;
- ``SeededDataset(...)`` around either seeds torch's generator with the seed of the batch: the views of a batch are the
  same for any number of workers.

Each returns views ``(B, V, C, H, W)`` and labels ``(B, ...)``; ``flatten_views`` returns the rows ``(V * B, C, H, W)``
for an encoder. With ``with_geometry=True`` a batch is ``(views, maps, labels)``, with maps ``(B, V, 2, 3)`` from image
to view.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate

from pml_supcon._checks import check_bool, check_callable, check_int, shown
from pml_supcon._layouts import split_views
from pml_supcon._tensors import check_dense, to_device
from pml_supcon.views.batch_mix import BatchMix
from pml_supcon.views.geometry import check_geometry

Transforms: TypeAlias = Callable[[Any], Tensor] | Sequence[Callable[[Any], Tensor]]


class MultiView:
    """A transform that returns ``V`` views of an image: it calls a random transform ``V`` times.

    Args:
        transform: Maps an image (PIL image, array, tensor) to a tensor ``(C, H, W)``. Or a sequence of ``V`` such
            transforms, one per view. All views need one shape and dtype.
        num_views: ``V >= 1``. By default 2 for a single transform, and the length of a sequence.
        with_geometry: Return the map from the image to each view too (see ``map_points``). The transform needs a
            method ``with_geometry``, as ``ImageTransform`` has; views and draws are the same as without.

    Raises:
        TypeError: If a transform is not callable, if ``num_views`` is not an integer, or, when called, if a
            view is not a tensor.
        ValueError: If ``num_views`` is below 1 or not the number of transforms, if the geometry is to be returned and
            missing, or, when called, if the views differ in shape or dtype.

    Examples:
        >>> views = MultiView(lambda image: image + torch.rand(1), num_views=2)(torch.zeros(3, 8, 8))
        >>> views.shape, bool((views[0] == views[1]).all())
        (torch.Size([2, 3, 8, 8]), False)
    """

    def __init__(self, transform: Transforms, num_views: int | None = None, *, with_geometry: bool = False) -> None:
        self.with_geometry = check_bool("with_geometry", with_geometry)
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
        for each in self.transforms:
            check_callable("transform", each)
            if self.with_geometry:
                check_geometry("transform", each)

    @property
    def num_views(self) -> int:
        """The number of views, ``V``."""
        return len(self.transforms)

    def __call__(self, image: Any) -> Any:
        """Return the views ``(V, C, H, W)`` of an image; with geometry, also the maps ``(V, 2, 3)``."""
        if not self.with_geometry:
            return self._stacked([transform(image) for transform in self.transforms])
        transforms: list[Any] = self.transforms
        pairs = [transform.with_geometry(image) for transform in transforms]
        return self._stacked([view for view, _ in pairs]), torch.stack([own for _, own in pairs])

    def _stacked(self, views: list[Tensor]) -> Tensor:
        for index, view in enumerate(views):
            if not isinstance(view, Tensor):
                raise TypeError(
                    f"Expected every view to be a tensor, but view {index} is {type(view).__name__}: "
                    "end the transform with a conversion to a tensor"
                )
            check_dense("transform", view, values=False)
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


class MultiViewDataset(Dataset[tuple[Any, ...]]):
    """A map-style dataset with ``V`` views of each image of another dataset.

    Args:
        dataset: A map-style dataset of pairs ``(image, label)``.
        transform: See ``MultiView``.
        num_views: See ``MultiView``.
        with_geometry: See ``MultiView``; items are then ``(views, geometry, label)``. The maps start from the images
            that the other dataset returns.

    Examples:
        >>> data = MultiViewDataset([(torch.zeros(3, 8, 8), 5)], lambda image: image + torch.rand(1))
        >>> views, label = data[0]
        >>> views.shape, label
        (torch.Size([2, 3, 8, 8]), 5)
    """

    def __init__(
        self, dataset: Any, transform: Transforms, num_views: int | None = None, *, with_geometry: bool = False
    ) -> None:
        check_dataset(dataset)
        self.dataset = dataset
        self.transform = MultiView(transform, num_views, with_geometry=with_geometry)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        item = self.dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise TypeError(f"Expected the `dataset` to return pairs (image, label), but got {type(item).__name__}")
        image, label = item
        views = self.transform(image)
        return (*views, label) if self.with_geometry else (views, label)

    @property
    def with_geometry(self) -> bool:
        """Items have the maps from the image to its views."""
        return self.transform.with_geometry

    @property
    def labels(self) -> Any:
        """The ``labels`` of the dataset, else its ``targets``.

        Raises:
            AttributeError: If it has neither.
        """
        return self.dataset.labels if hasattr(self.dataset, "labels") else self.dataset.targets


class MultiViewTensorDataset(Dataset[tuple[Tensor, ...]]):
    """A dataset of images in memory that computes all views of a batch in one call of the transform.

    The DataLoader fetches a batch at once (``__getitems__``) and needs ``collate_fn=MultiViewTensorDataset.collate``,
    because the batch is already collated. At 8 x 8 this is tens of times faster than one call per image.

    Args:
        images: ``(N, C, H, W)``, of a dtype that the transform takes.
        labels: ``(N,)`` classes, or ``(N, ...)`` as the target of a loss takes them.
        transform: maps images ``(N, C, H, W)`` to float images, each with its own random parameters, as the result of
            ``augmentation`` does.
        num_views: ``V >= 1``.
        with_geometry: return ``(views, geometry, labels)``, with the maps ``(B, V, 2, 3)`` from each image to its views
            (see ``map_points``). The transform needs a method ``with_geometry``, as ``ImageTransform`` has; views and
            draws are the same as without.

    Raises:
        ValueError: If images and labels differ in number, ``num_views`` is below 1, or the geometry is to be returned
            and missing.
        TypeError: If ``num_views`` is not an integer.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> from pml_supcon.views import digit_augmentation
        >>> data = MultiViewTensorDataset(
        ...     torch.zeros(6, 1, 8, 8), torch.arange(6), digit_augmentation(8, mean=[0.5], std=[0.5])
        ... )
        >>> views, labels = next(iter(DataLoader(data, batch_size=4, collate_fn=data.collate)))
        >>> views.shape, labels
        (torch.Size([4, 2, 1, 8, 8]), tensor([0, 1, 2, 3]))
        >>> told = MultiViewTensorDataset(data.images, data.labels, data.transform, with_geometry=True)
        >>> [part.shape for part in told.__getitems__([0, 3])]
        [torch.Size([2, 2, 1, 8, 8]), torch.Size([2, 2, 2, 3]), torch.Size([2])]
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        transform: Callable[[Tensor], Tensor],
        num_views: int = 2,
        *,
        with_geometry: bool = False,
    ) -> None:
        check_dense("images", images)
        check_dense("labels", labels)
        check_callable("transform", transform)
        if images.ndim != 4 or labels.ndim == 0:
            raise ValueError(
                "Expected arguments `images` and `labels` to have shapes (N, C, H, W) and (N, ...), but got "
                f"{tuple(images.shape)} and {tuple(labels.shape)}"
            )
        if len(images) != len(labels):
            raise ValueError(
                f"Expected `labels` to hold one for each of {len(images)} images, but got {len(labels)} labels"
            )
        check_int("num_views", num_views, low=1)
        self.with_geometry = check_bool("with_geometry", with_geometry)
        if self.with_geometry:
            check_geometry("transform", transform)
        self.images, self.labels, self.transform, self.num_views = images, labels, transform, num_views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(part[0] for part in self.__getitems__([index]))

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the views ``(B, V, C, H, W)``, with geometry the maps ``(B, V, 2, 3)``, and labels ``(B, ...)``."""
        chosen = torch.as_tensor(indices, device="cpu")
        # (V * B, C, H, W), view-major: the transform draws parameters for each row.
        images = self.images[to_device(chosen, self.images.device)].repeat(self.num_views, 1, 1, 1)
        transform: Any = self.transform
        parts = transform.with_geometry(images) if self.with_geometry else (transform(images),)
        for rows in parts:
            if not isinstance(rows, Tensor) or rows.shape[:1] != (len(images),):
                given = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
                raise ValueError(f"Expected `transform` to return a tensor of {len(images)} images, but got {given}")
        labels = self.labels[to_device(chosen, self.labels.device)]
        return (*(split_views(rows, self.num_views) for rows in parts), labels)

    @staticmethod
    def collate(batch: Any) -> Any:
        """Return the batch, which ``__getitems__`` has already collated."""
        return batch


class SeededDataset(Dataset[Any]):
    """A dataset whose random draws depend only on the seed of the batch, which ``MultiViewBatchSampler`` provides.

    Without it the views of a batch depend on all earlier draws, and on the worker that drew them. With it a batch is
    the same in every run with the sampler's seed, for any number of workers, and after a resume in the middle of an
    epoch. It seeds torch's global generators of the CPU and of ``device`` for the batch, and restores them. Batches are
    already collated: the DataLoader needs ``collate_fn=SeededDataset.collate``.

    Args:
        dataset: a map-style dataset. If it has ``__getitems__``, that method returns the collated batch.
        device: the device of the random draws.
        batch_transform: maps the parts of the collated batch, views and labels, to the batch, as ``BatchMix`` does.
            Not ``BatchMix`` for a dataset with geometry: a mixture has no single map.

    Raises:
        TypeError: If a batch has no seed, or ``batch_transform`` is not callable.
        ValueError: If a seed has more than 64 bits, torch has no such ``device``, or ``batch_transform`` is a
            ``BatchMix`` and the dataset returns geometry.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> from pml_supcon.samplers import MultiViewBatchSampler
        >>> from pml_supcon.views import MultiViewDataset
        >>> noisy = MultiViewDataset([(torch.zeros(3, 8, 8), 5)] * 4, lambda image: image + torch.rand(1))
        >>> data, sampler = SeededDataset(noisy), MultiViewBatchSampler([0] * 4, batch_size=4)
        >>> batches = []
        >>> for _ in range(2):
        ...     sampler.set_epoch(0)
        ...     batches += DataLoader(data, batch_sampler=sampler, collate_fn=data.collate)
        >>> bool((batches[0][0] == batches[1][0]).all())
        True
    """

    def __init__(
        self,
        dataset: Any,
        device: torch.device | str = "cpu",
        *,
        batch_transform: Callable[..., Any] | None = None,
    ) -> None:
        check_dataset(dataset)
        if batch_transform is not None:
            check_callable("batch_transform", batch_transform)
        if isinstance(batch_transform, BatchMix) and with_geometry_of(dataset):
            raise ValueError(
                "Expected argument `batch_transform` other than `BatchMix` for a dataset with `with_geometry=True`, "
                f"as a mixture has no single map, but got {batch_transform} and {type(dataset).__name__}"
            )
        self.batch_transform = batch_transform
        try:
            self.dataset, self.device = dataset, torch.device(device)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"Expected argument `device` to be a device of torch, but got {shown(device)}") from error

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, batch: Sequence[int]) -> Any:
        """Return the samples of a batch, collated and transformed."""
        seed = getattr(batch, "seed", None)
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise TypeError(
                "Expected batches with a `seed`, as `samplers.MultiViewBatchSampler` yields them, "
                f"but got {type(batch).__name__}"
            )
        if not -(2**63) <= seed < 2**64:  # the range of torch
            raise ValueError(f"Expected batches with a `seed` of 64 bits, but got {shown(seed)}")
        with _seeded(seed, self.device):
            if hasattr(self.dataset, "__getitems__"):
                collated = self.dataset.__getitems__(batch)
            else:
                collated = default_collate([self.dataset[index] for index in batch])
            return collated if self.batch_transform is None else self.batch_transform(*collated)

    collate = staticmethod(MultiViewTensorDataset.collate)


def with_geometry_of(dataset: Any) -> bool:
    """Return True if a dataset of views, or the dataset of a ``torch.utils.data.Subset``, returns geometry."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return bool(getattr(dataset, "with_geometry", False))


def check_dataset(dataset: Any) -> None:
    """Raise unless the data set is map-style: it has a length and items."""
    if isinstance(dataset, type) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(f"Expected argument `dataset` to be a map-style dataset, but got {shown(dataset)}")


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the CPU and of one device within the context, and restore them."""
    cuda = device.type == "cuda"
    index = (torch.cuda.current_device() if device.index is None else device.index) if cuda else 0
    with torch.random.fork_rng(devices=[index] if cuda else []):
        torch.default_generator.manual_seed(seed)  # not `torch.manual_seed`, which seeds all devices
        if cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
