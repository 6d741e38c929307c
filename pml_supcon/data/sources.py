"""The sources of ``load_data``: digits, image folders and Hugging Face data sets, opened without decoding images."""

import os
import pwd
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from pml_supcon._checks import did_you_mean
from pml_supcon._files import check_file, kind_of
from pml_supcon.data.folders import open_folder
from pml_supcon.data.images import Pool, Source, digest_of, printable
from pml_supcon.data.splits import with_classes
from pml_supcon.data.torchvision_source import open_torchvision

FORMS = "digits, torchvision:NAME, imagefolder:PATH, hf:PATH_OR_ID"
_TEST_SPLITS = ("test", "validation")
_DATA_FILES = (".parquet", ".arrow", ".tar", ".zip", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".h5", ".hdf5")
_MOST_FOREIGN = 10_000  # entries of a folder before its first data file
_LABEL_NAMES = ("label", "labels", "target", "fine_label")


def open_source(spec: str) -> Source:
    """Open a data set; see ``load_data`` for the forms of ``spec`` and the errors."""
    form, query = _form_and_query(spec)
    parts = [part.partition("=") for part in query.split("&") if part]
    if not all(name and value for name, _, value in parts):
        raise ValueError(f"Expected `?NAME=VALUE`, joined by `&`, at the end of the data, but got {spec!r}")
    options = {name: value for name, _, value in parts}
    wanted = options.pop("classes", None)
    source = _open_form(form, options, spec)
    return source if wanted is None else with_classes(source, wanted, spec)


def _form_and_query(spec: str) -> tuple[str, str]:
    """Split a specification at its ``?``; a path that exists may have one in its name."""
    marks = [index for index, letter in enumerate(spec) if letter == "?"]
    place = spec.find(":") + 1
    for mark in (len(spec), *reversed(marks)):
        if marks and place and spec[place:mark] and _as_path(spec[place:mark]).exists():
            return spec[:mark], spec[mark + 1 :]
    form, _, query = spec.partition("?")
    return form, query


def _as_path(place: str) -> Path:
    """Return the path with `~` expanded; the home of an unknown user stays as it is, and does not exist."""
    return Path(os.path.expanduser(place))


def _open_form(form: str, options: dict[str, str], spec: str) -> Source:
    if form == "digits":
        _refuse_options("digits", options, ())
        return _open_digits()
    scheme, colon, place = form.partition(":")
    openers = {"torchvision": open_torchvision, "imagefolder": _open_folder, "hf": _open_hub}
    if scheme not in openers or not colon:
        hint = did_you_mean(scheme, ["digits", *openers])
        raise ValueError(f"Expected the data to be one of {FORMS}, but got {spec!r}{hint}")
    if not place:
        raise ValueError(f"Expected a name or path after `{scheme}:` (the forms are {FORMS}), but got {spec!r}")
    return openers[scheme](place, options)


@dataclass(frozen=True)
class _ArrayImages:
    pixels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]

    def where(self, index: int) -> str:
        return f"image {index}"

    def fingerprint(self) -> str:
        return digest_of(str(self.pixels.tolist()))


def _open_digits() -> Source:
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    return Source(Pool(_ArrayImages(pixels), labels), None, tuple("0123456789"), symbols=True)


def _open_folder(place: str, options: dict[str, str]) -> Source:
    _refuse_options("imagefolder", options, ("depth",))
    depth = options.get("depth")
    if depth not in (None, "1", "2", "3"):
        raise ValueError(f"Expected `?depth=` to be 1, 2 or 3, the level of the class folders, but got {depth!r}")
    return open_folder(_as_path(place), None if depth is None else int(depth))


@dataclass(frozen=True)
class _RowImages:
    rows: Any  # a datasets.Dataset of one column, whose images are not decoded
    column: str
    split: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Image.Image:
        cell = self.rows[index][self.column]
        if cell is None:
            raise ValueError("the row is empty")
        return Image.open(BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"])

    def where(self, index: int) -> str:
        path = (self.rows[index][self.column] or {}).get("path")
        return f"row {index} of {self.split}" + (f" ({path})" if path else "")

    def fingerprint(self) -> str:
        return str(self.rows._fingerprint)  # of the files and of all operations on the rows


def _open_hub(place: str, options: dict[str, str]) -> Source:
    """Open a folder of Parquet files (or any other that ``datasets`` reads), or a data set of the hub."""
    import datasets  # imported here because it is slow and optional

    _refuse_options("hf", options, ("image", "label", "name", "train", "test"))
    path = _as_path(place)
    if not path.exists() and (place.startswith((".", "/", "~")) or place.count("/") > 1):
        raise FileNotFoundError(f"Expected a folder that `datasets` reads, but there is no folder {path}")
    if path.exists():
        _check_data_files(path)
    try:
        splits = datasets.load_dataset(str(path) if path.exists() else place, options.get("name"))
    except Exception as error:  # no such id, no connection, no data files: datasets raises many kinds
        absent = "" if path.exists() else " (nor is there a folder of that name)"
        raise ValueError(f"`datasets` could not load {place!r}{absent}: {error}") from error
    first, chosen = options.get("train", "train"), options.get("test")
    if first == chosen:
        raise ValueError(f"Expected two splits of {place!r} to train and to test on, but got {first} for both")
    for name in filter(None, (first, chosen)):
        if name not in splits:
            raise ValueError(
                f"Expected a split named {name} in {place!r}, but its splits are {', '.join(splits)} "
                "(`hf:...?train=SPLIT&test=SPLIT` names others)"
            )
    features = splits[first].features
    image = options.get("image") or _image_column(features, datasets)
    label = options.get("label") or _label_column(features, datasets)
    for column in (image, label):
        if column not in features:
            raise ValueError(f"Expected a column {column!r} in {place!r}, but its columns are {', '.join(features)}")
    tests = [chosen] if chosen else [name for name in _TEST_SPLITS if name in splits and name != first]
    columns = {name: list(splits[name].select_columns([label])[:][label]) for name in (first, *tests)}
    names, codes = _encode(columns, features[label], datasets)
    # If the test split has no labels, as in a competition, use the validation split.
    labelled = [name for name in tests if any(value >= 0 for value in codes[name])]
    test = next(iter(labelled or tests), None)
    pools = {}
    for name in filter(None, (first, test)):
        labels = codes[name]
        unlabelled = sum(value < 0 for value in labels)
        if unlabelled:
            raise ValueError(
                f"Expected a label in every row of {place!r}, but {unlabelled} of {len(labels)} rows of {name} have "
                f"none (`hf:...?test=SPLIT` names another split of {', '.join(splits)})"
            )
        rows = splits[name].select_columns([image]).cast_column(image, datasets.Image(decode=False))
        pools[name] = Pool(_RowImages(rows, image, name), torch.tensor(labels, dtype=torch.long))
    left_out = [
        f"the split {name} ({len(splits[name])} rows{'' if name in labelled or name not in tests else ', no labels'})"
        for name in splits
        if name not in pools
    ]
    return Source(
        pools[first],
        pools[test] if test else None,
        names,
        shuffled=True,
        parts=(f"the split {first}", f"the split {test}" if test else None),
        left_out=tuple(left_out),
    )


def _check_data_files(root: Path) -> None:
    """Raise unless a folder holds data files; ``datasets`` would read a home folder through for minutes.

    Hidden folders are skipped, as ``datasets`` does.
    """
    if not root.is_dir():
        raise NotADirectoryError(f"Expected a folder that `datasets` reads, but {printable(root)} is {kind_of(root)}")
    expected = f"Expected {printable(root)} to hold data files ({', '.join(_DATA_FILES)} or images)"
    home, folders, read, seen, found = _is_home(root), [os.fspath(root)], set(), 0, False
    while folders:
        folder = folders.pop()
        read.add(os.path.realpath(folder))
        for entry in os.scandir(folder):
            seen += 1
            if entry.name.startswith((".", "__")):
                continue
            if entry.is_dir():
                if not home and os.path.realpath(entry.path) not in read:
                    folders.append(entry.path)
            elif entry.name.lower().endswith((*_DATA_FILES, *Image.registered_extensions())):
                check_file(Path(entry.path))
                found = True
        if not found and seen > _MOST_FOREIGN:
            raise ValueError(f"{expected}, but its first {seen} entries are none")
    if not found:
        raise ValueError(f"{expected}, but it holds none" + (" itself, and it is a home folder" if home else ""))


def _is_home(folder: Path) -> bool:
    """Return True for the home of its owner or of this user, or a folder above it."""
    resolved = folder.resolve()
    home = Path.home().resolve()
    if resolved in (home, *home.parents):
        return True
    try:
        return Path(pwd.getpwuid(resolved.stat().st_uid).pw_dir).resolve() == resolved
    except KeyError:
        return False


def _encode(columns: dict[str, list[Any]], feature: Any, datasets: Any) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Return the class names and the labels 0..C-1 of each split, the training split first; -1 is no label."""
    if isinstance(feature, datasets.ClassLabel):
        coded = {name: [-1 if value is None else int(value) for value in column] for name, column in columns.items()}
        return tuple(feature.names), coded
    # -1 is a hidden label, unless training images have it
    hidden = (None,) if -1 in next(iter(columns.values())) else (None, -1)
    values = [value for column in columns.values() for value in column if value not in hidden]
    if not all(isinstance(value, int | str) for value in values):
        raise ValueError(f"Expected labels that are classes, integers or strings, but got a column of {feature}")
    known = sorted(set(values))
    code = {value: index for index, value in enumerate(known)}
    return tuple(map(str, known)), {n: [code.get(value, -1) for value in column] for n, column in columns.items()}


def _image_column(features: Any, datasets: Any) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(found) != 1:
        raise ValueError(
            f"Expected one column of images, but got {len(found)} among the columns {', '.join(features)} "
            "(`hf:...?image=COLUMN` names one)"
        )
    return str(found[0])


def _label_column(features: Any, datasets: Any) -> str:
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    kinds = {name: str(getattr(feature, "dtype", "")) for name, feature in features.items()}
    numbers = [name for name, kind in kinds.items() if "int" in kind]
    texts = [name for name in _LABEL_NAMES if kinds.get(name) in ("string", "large_string", "bool")]
    for found in (classes, numbers, texts):
        named = [name for name in _LABEL_NAMES if name in found]
        if named or len(found) == 1:
            return str((named or found)[0])
        if found:
            raise ValueError(
                f"Expected one column of labels, but got {', '.join(found)} (`hf:...?label=COLUMN` names one)"
            )
    raise ValueError(
        f"Expected a column of labels (ClassLabel or integers, or strings named {', '.join(_LABEL_NAMES)}), but the "
        f"columns are {', '.join(features)} (`hf:...?label=COLUMN` names one)"
    )


def _refuse_options(scheme: str, options: dict[str, str], known: tuple[str, ...]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        allowed = ", ".join(("classes", *known))
        raise ValueError(f"Expected the options of `{scheme}:` to be among: {allowed}; but got {', '.join(unknown)}")
