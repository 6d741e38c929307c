"""A dataset that applies a fixed change to its images."""

from collections.abc import Callable
from operator import index as to_int
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from pml_supcon._checks import shown
from pml_supcon.views.changes import Change
from pml_supcon.views.multi_view import check_dataset


class ChangedDataset(Dataset[tuple[Any, Any]]):
    """The images of a dataset under a change, whose random draws depend on the index of the image.

    An image is the same in any batch, in any order and for any number of workers. A PIL image stays a PIL image and a
    tensor a tensor.

    Args:
        dataset: Map-style, with a length, of ``(image, label)``. The image is a PIL image of mode "L" or "RGB" or a
            uint8 tensor ``(C, H, W)``, before any transform to floats. Labels are returned unchanged.
        change: A ``Change`` such as ``Rotation`` or a ``Corruption``; None leaves the image.
        transform: Applied to the changed image; None leaves it.

    Raises:
        TypeError: If ``change`` or ``transform`` is not callable, or an image is neither a PIL image nor a
            uint8 tensor.
        ValueError: If an image has another mode or shape.
        IndexError: If an index is out of range.

    Examples:
        >>> from pml_supcon.views import Rotation
        >>> data = ChangedDataset([(torch.eye(2, dtype=torch.uint8)[None], 7)], Rotation(90))
        >>> image, label = data[0]
        >>> image.tolist(), label
        ([[[0, 1], [1, 0]]], 7)
        >>> photographs = [(Image.new("RGB", (48, 32)), 7)]
        >>> ChangedDataset(photographs, Rotation(180))[0][0].size
        (48, 32)
    """

    def __init__(self, dataset: Any, change: Change | None, *, transform: Callable[[Any], Any] | None = None) -> None:
        for name, value in (("change", change), ("transform", transform)):
            if value is not None and not callable(value):
                raise TypeError(f"Expected argument `{name}` to be callable, or None, but got {shown(value)}")
        check_dataset(dataset)
        self.dataset, self.change, self.transform = dataset, change, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return the changed and transformed image, and its label."""
        position = range(len(self))[to_int(index)]  # negative indices count from the end
        item = self.dataset[position]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise TypeError(f"Expected the `dataset` to return pairs (image, label), but got {type(item).__name__}")
        image, label = item
        _check(image, position)
        if self.change is not None:
            pixels = image if isinstance(image, Tensor) else TF.pil_to_tensor(image)
            changed = self.change(pixels.unsqueeze(0), torch.tensor([position]))
            if not isinstance(changed, Tensor) or changed.shape[:1] != (1,):
                given = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
                raise ValueError(f"Expected `change` to return one image (1, C, H, W), but got {given}")
            changed = changed.squeeze(0)
            image = changed if isinstance(image, Tensor) else TF.to_pil_image(changed)  # mode "L" or "RGB"
        return image if self.transform is None else self.transform(image), label


def _check(image: Any, position: int) -> None:
    expected = "Expected images of `dataset` to be"
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8:
            raise TypeError(f"{expected} uint8, but image {position} is {image.dtype}")
        if image.ndim != 3:
            raise ValueError(f"{expected} (C, H, W), but image {position} has shape {tuple(image.shape)}")
    elif not isinstance(image, Image.Image):
        raise TypeError(f"{expected} PIL images or uint8 tensors, but image {position} is a {type(image).__name__}")
    elif image.mode not in ("L", "RGB"):
        raise ValueError(f'{expected} of mode "L" or "RGB", but image {position} has {image.mode!r}')
