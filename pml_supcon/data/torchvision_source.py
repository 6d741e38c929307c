"""The data sets of ``torchvision.datasets``, behind one interface for their different constructors and labels."""

import difflib
import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pml_supcon.data.images import Pool, Source, digest_of, stamps

ROOT_VARIABLE = "PML_SUPCON_DATA"  # the folder for the files; default: data
_SYMBOLS = ("MNIST", "EMNIST", "KMNIST", "QMNIST", "USPS", "SVHN", "Omniglot")
_TRAIN_SPLITS, _TEST_SPLITS = ("train", "trainval"), ("test", "val", "valid")
_LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "y")
_NOT_DATA = ("ImageFolder", "DatasetFolder", "VisionDataset")


def open_torchvision(place: str, options: dict[str, str]) -> Source:
    """Open a class of ``torchvision.datasets`` by its case-insensitive name; download missing files.

    Args:
        place: The name.
        options: Further arguments of the constructor, as strings (EMNIST: ``split``).

    Returns:
        Train and test, or train alone if the class has no splits.

    Raises:
        ValueError: If the name is unknown, the class needs other arguments, or the labels are not integers.
        OSError: If the download fails.
    """
    name, kind = find_class(place, options)
    parameters = _parameters(kind)
    if "train" in parameters:
        train, test = (_build(kind, {"train": flag, **options}) for flag in (True, False))
    elif "split" in parameters and "split" not in options:
        train, test = (_first_split(kind, splits, options) for splits in (_TRAIN_SPLITS, _TEST_SPLITS))
    else:
        train, test = _build(kind, options), None
    classes = getattr(train, "classes", None) or getattr(train, "categories", None)
    pools = [None if part is None else Pool(_Items(part, name), _labels(part, name)) for part in (train, test)]
    assert pools[0] is not None
    count = max(int(pool.labels.max()) + 1 for pool in pools if pool is not None and len(pool))
    class_names = tuple(map(str, classes)) if classes is not None and len(classes) >= count else None
    return Source(pools[0], pools[1], class_names or tuple(map(str, range(count))), symbols=name in _SYMBOLS)


def find_class(place: str, options: dict[str, str]) -> tuple[str, type]:
    """Return the name and the class for ``open_torchvision``, and check the options, without a download."""
    names = {
        name.lower(): name
        for name in torchvision.datasets.__all__
        if isinstance(getattr(torchvision.datasets, name), type) and name not in _NOT_DATA
    }
    if place.lower() not in names:
        near = [names[name] for name in difflib.get_close_matches(place.lower(), names, n=4)]
        hint = f"; the nearest names are {', '.join(near)}" if near else ""
        raise ValueError(f"Expected a class of torchvision.datasets after `torchvision:`, but got {place!r}{hint}")
    name = names[place.lower()]
    kind: type = getattr(torchvision.datasets, name)
    parameters = _parameters(kind)
    given = {"root", "train", *options} | ({"split"} if "train" not in parameters else set())
    missing = [key for key, value in parameters.items() if value.default is value.empty and key not in given]
    if missing or not set(options) <= set(parameters):
        raise ValueError(
            f"torchvision's {name} needs {missing or 'no further arguments'}, but got {options} "
            f"(`torchvision:{name}?ARGUMENT=VALUE` gives one)"
        )
    return name, kind


#: Attributes of torchvision's classes that hold the paths of the images.
_FILES = ("samples", "_samples", "_image_files", "_images", "images")


@dataclass(frozen=True)
class _Items:
    dataset: Any
    name: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Image.Image | Tensor:
        image: Image.Image | Tensor = self.dataset[index][0]
        return image

    def where(self, index: int) -> str:
        return f"image {index} of torchvision's {self.name}"

    def fingerprint(self) -> str:
        held = (getattr(self.dataset, name, ()) for name in _FILES)
        items = [item[0] if isinstance(item, tuple) else item for found in held for item in found]
        files = [str(item) for item in items if isinstance(item, str | Path) and Path(item).is_file()]
        return digest_of(self.name, repr(self.dataset), *stamps(files))


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Return the parameters of the constructor, with its parents' parameters if it passes ``**kwargs`` to them."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        own = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        found = {**own, **found}
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in own.values()):
            break
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: value for name, value in found.items() if value.kind in named and name != "self"}


def _build(kind: type, options: dict[str, Any]) -> Any:
    parameters = _parameters(kind)
    arguments = dict(options)
    if "root" in parameters:
        arguments["root"] = os.environ.get(ROOT_VARIABLE, "data")
    if "download" not in parameters:
        return kind(**arguments)
    try:
        return kind(**arguments, download=False)
    except (RuntimeError, FileNotFoundError):
        pass  # the files are missing
    try:
        return kind(**arguments, download=True)
    except (OSError, RuntimeError) as error:  # no connection, a file that does not fit its checksum
        raise OSError(
            f"torchvision could not download {kind.__name__} into {arguments.get('root')} "
            f"(the variable {ROOT_VARIABLE} names another folder): {error}"
        ) from error


def _first_split(kind: type, splits: tuple[str, ...], options: dict[str, str]) -> Any:
    for split in splits:
        try:
            return _build(kind, {"split": split, **options})
        except ValueError as error:  # raised by torchvision for an unknown split
            last = error
    raise ValueError(f"Expected one of the splits {', '.join(splits)}, but torchvision says: {last}") from last


def _labels(dataset: Any, name: str) -> Tensor:
    candidates = [getattr(dataset, attribute) for attribute in _LABEL_ATTRIBUTES if hasattr(dataset, attribute)]
    if hasattr(dataset, "_samples"):
        candidates.append([label for _, label in dataset._samples])
    for candidate in candidates:
        labels = _as_labels(candidate, len(dataset))
        if labels is not None:
            return labels
    # No attribute holds the labels: decode every item once.
    if len(dataset) and _as_labels([dataset[0][1]], 1) is not None:
        bar = tqdm(range(len(dataset)), desc=f"labels of {name}", disable=None, leave=False)
        labels = _as_labels([dataset[index][1] for index in bar], len(dataset))
        if labels is not None:
            return labels
    raise ValueError(f"Expected one integer label >= 0 per image, but torchvision's {name} has other targets")


def _as_labels(values: Any, count: int) -> Tensor | None:
    """Return the values as int64 ``(count,)``, or None if they are not labels."""
    try:
        labels = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    if labels.shape != (count,) or labels.is_floating_point() or (labels < 0).any():
        return None
    return labels.long()
