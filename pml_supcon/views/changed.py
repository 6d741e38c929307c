"""`ChangedDataset`: a data set whose images come out changed."""

from collections.abc import Callable
from operator import index as as_whole
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from pml_supcon.views.changes import Change


class ChangedDataset(Dataset[tuple[Any, Any]]):
    """The images of a data set under a change, each with the draws of its place.

    The same image comes out whatever the batch, the order or the number of workers. It comes out as the kind it came
    in, so that transforms written for either go on working.

    Args:
        dataset: Map-style, with a length, of ``(image, label)``. The image is a PIL image of mode "L" or "RGB" or a
            uint8 tensor ``(C, H, W)``, before any transform that makes floats of it. Labels pass through.
        change: What is done to it: one of `views`, a `Corruption`, or another `Change`; None for the image as it is.
        transform: Applied to the changed image, as torchvision's are; None leaves it.

    Raises:
        TypeError: If ``change`` or ``transform`` is not callable. When an image is read: if it is neither, or not
            uint8.
        ValueError: When an image is read: if it has another mode or shape.
        IndexError: When an image is read: if the index is out of range.

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
                raise TypeError(f"Expected argument `{name}` to be callable, or None, but got {value!r}.")
        self.dataset, self.change, self.transform = dataset, change, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """One image, changed and transformed, and its label."""
        place = range(len(self))[as_whole(index)]  # from the end where negative; IndexError where there is none
        image, label = self.dataset[place]
        _check(image, place)
        if self.change is not None:
            image = _changed(image, self.change, place)
        return image if self.transform is None else self.transform(image), label


def _changed(image: Tensor | Image.Image, change: Change, place: int) -> Tensor | Image.Image:
    pixels: Tensor = image if isinstance(image, Tensor) else TF.pil_to_tensor(image)
    made = change(pixels.unsqueeze(0), torch.tensor([place])).squeeze(0)
    if isinstance(image, Tensor):
        return made
    picture: Image.Image = TF.to_pil_image(made)  # "L" of one channel, "RGB" of three
    return picture


def _check(image: Any, place: int) -> None:
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8:
            raise TypeError(f"Expected images to be uint8, but image {place} is {image.dtype}.")
        if image.ndim != 3:
            raise ValueError(f"Expected images to be (C, H, W), but image {place} has shape {tuple(image.shape)}.")
    elif not isinstance(image, Image.Image):
        raise TypeError(
            f"Expected images to be PIL images or uint8 tensors, but image {place} is a {type(image).__name__}."
        )
    elif image.mode not in ("L", "RGB"):
        raise ValueError(f'Expected PIL images to have mode "L" or "RGB", but image {place} has {image.mode!r}.')
