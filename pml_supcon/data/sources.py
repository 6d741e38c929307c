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
from pml_supcon.data.folders import open_folder, with_folder_levels
from pml_supcon.data.images import Pool, Source, digest_of, printable
from pml_supcon.data.label_columns import choose_columns, read_labels
from pml_supcon.data.label_kinds import LabelsAre
from pml_supcon.data.label_values import EXPECTED
from pml_supcon.data.splits import with_classes
from pml_supcon.data.torchvision_source import open_torchvision

FORMS = "digits, torchvision:NAME, imagefolder:PATH, hf:PATH_OR_ID"
_TEST_SPLITS = ("test", "validation")
_DATA_FILES = (".parquet", ".arrow", ".tar", ".zip", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".h5", ".hdf5")
_MOST_FOREIGN = 10_000  # entries of a folder before its first data file


def open_source(spec: str, labels_are: LabelsAre = "classes") -> Source:
    """Open a data set; see ``load_data`` for the forms of ``spec``, the kinds of labels and the errors."""
    form, query = _form_and_query(spec)
    parts = [part.partition("=") for part in query.split("&") if part]
    if not all(name and value for name, _, value in parts):
        raise ValueError(f"Expected `?NAME=VALUE`, joined by `&`, at the end of the data, but got {spec!r}")
    options = {name: value for name, _, value in parts}
    wanted = options.pop("classes", None)
    if wanted is not None and labels_are != "classes":
        raise ValueError(
            f"Expected no `?classes=` with --labels {labels_are}: it selects classes, but got {spec!r} (for labels of "
            "other kinds select the rows before, with `datasets`)"
        )
    source = _open_form(form, options, spec, labels_are)
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


def _open_form(form: str, options: dict[str, str], spec: str, labels_are: LabelsAre) -> Source:
    scheme, colon, place = form.partition(":")
    if scheme == "hf" and place:
        return _open_hub(place, options, labels_are)
    if scheme == "imagefolder" and place and labels_are in ("classes", "hierarchy"):
        return _open_folder(place, options, labels_are)
    if labels_are != "classes":
        others = " or `imagefolder:PATH?depth=2`" if labels_are == "hierarchy" else ""
        raise ValueError(
            f"Expected `hf:PATH_OR_ID`{others} with --labels {labels_are}, with {EXPECTED[labels_are]}, in Parquet or "
            f"in a `metadata.csv` beside the images, but got {spec!r}"
        )
    if form == "digits":
        _refuse_options("digits", options, ())
        return _open_digits()
    schemes = ("torchvision", "imagefolder", "hf")
    if scheme not in schemes or not colon:
        hint = did_you_mean(scheme, ["digits", *schemes])
        raise ValueError(f"Expected the data to be one of {FORMS}, but got {spec!r}{hint}")
    if not place:
        raise ValueError(f"Expected a name or path after `{scheme}:` (the forms are {FORMS}), but got {spec!r}")
    return open_torchvision(place, options)


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


def _open_folder(place: str, options: dict[str, str], labels_are: LabelsAre) -> Source:
    _refuse_options("imagefolder", options, ("depth",))
    depth = options.get("depth")
    if depth not in (None, "1", "2", "3"):
        raise ValueError(f"Expected `?depth=` to be 1, 2 or 3, the level of the class folders, but got {depth!r}")
    if labels_are == "classes":
        return open_folder(_as_path(place), None if depth is None else int(depth))
    if depth not in ("2", "3"):
        raise ValueError(
            "Expected `?depth=2` or `?depth=3` with --labels hierarchy, whose levels are the folders GROUP/CLASS above "
            f"the images, but got {depth or 'none'}"
        )
    return with_folder_levels(open_folder(_as_path(place), int(depth)))


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


def _open_hub(place: str, options: dict[str, str], labels_are: LabelsAre) -> Source:
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
    columns = choose_columns(options.get("label"), features, labels_are)
    for column in (image, *columns):
        if column not in features:
            raise ValueError(f"Expected a column {column!r} in {place!r}, but its columns are {', '.join(features)}")
    if image in columns:
        raise ValueError(f"Expected columns of labels after `?label=`, but {image} holds the images")
    tests = [chosen] if chosen else [name for name in _TEST_SPLITS if name in splits and name != first]
    names, found = read_labels({name: splits[name] for name in (first, *tests)}, columns, labels_are)
    # If the test split has no labels, as in a competition, use the validation split.
    labelled = [name for name in tests if not bool(found[name].missing.all())]
    test = next(iter(labelled or tests), None)
    pools = {}
    for name in filter(None, (first, test)):
        labels, missing = found[name]
        if unlabelled := int(missing.sum()):
            raise ValueError(
                f"Expected a label in every row of {place!r}, but {unlabelled} of {len(labels)} rows of {name} have "
                f"none (`hf:...?test=SPLIT` names another split of {', '.join(splits)})"
            )
        rows = splits[name].select_columns([image]).cast_column(image, datasets.Image(decode=False))
        pools[name] = Pool(_RowImages(rows, image, name), labels)
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
        labels_are=labels_are,
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


def _image_column(features: Any, datasets: Any) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(found) != 1:
        raise ValueError(
            f"Expected one column of images, but got {len(found)} among the columns {', '.join(features)} "
            "(`hf:...?image=COLUMN` names one)"
        )
    return str(found[0])


def _refuse_options(scheme: str, options: dict[str, str], known: tuple[str, ...]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        allowed = ", ".join(("classes", *known))
        raise ValueError(f"Expected the options of `{scheme}:` to be among: {allowed}; but got {', '.join(unknown)}")
