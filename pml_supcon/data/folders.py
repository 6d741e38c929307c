"""Image folders: find the training and test parts and the class folders, and report everything that is left out."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from pml_supcon._files import kind_of
from pml_supcon.data.images import Pool, Source, digest_of, printable, stamps

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation")  # the first of these that exists is scored
_PART = re.compile("train|test|val|dev|eval", re.IGNORECASE)  # the first letters of the names of parts
EXTENSIONS = (*IMG_EXTENSIONS, ".gif", ".jfif", ".jpe", ".pbm", ".avif")


@dataclass(frozen=True)
class FileImages:
    """The images of files, opened when read."""

    paths: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])

    def where(self, index: int) -> str:
        """Return the path."""
        return printable(self.paths[index])

    def fingerprint(self) -> str:
        """Return a digest of paths, sizes and times of change."""
        return digest_of(*stamps(self.paths))


def open_folder(root: Path, depth: int | None = None) -> Source:
    """Open a folder with a training part and a test part, or a folder of class folders.

    Args:
        root: ``root/train/CLASS/*`` and ``root/test/CLASS/*``, or ``root/CLASS/*``. The parts may have any
            name in ``TRAIN_NAMES`` and ``TEST_NAMES``, in any case.
        depth: The level of the class folders: 1 for ``CLASS/*``, 2 for ``GROUP/CLASS/*``. Default: 1, with an error if
            class folders hold several folders of images and no image.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it is not clear which folders are classes or parts, or a class has no images.
    """
    if not root.is_dir():
        found = f"{printable(root)} is {kind_of(root)}" if root.exists() else f"there is no folder {printable(root)}"
        raise FileNotFoundError(f"Expected a folder of images, but {found}")
    train, test, others = _parts(root)
    reader = _Reader(depth)
    if train is None:
        if depth is None:
            _refuse_parts_of_other_names(root)
        pool, names = reader.read(root, ())
        return Source(pool, None, names, parts=(f"{printable(root)}", None), left_out=reader.left_out())
    pool, names = reader.read(train, ())
    reader.left["files beside the parts"] += sum(_is_file(entry) for entry in _entries(root))
    if test is None:
        return Source(pool, None, names, parts=(f"{train.name}/", None), left_out=reader.left_out(others))
    tested, names = reader.read(test, names)
    return Source(pool, tested, names, parts=(f"{train.name}/", f"{test.name}/"), left_out=reader.left_out(others))


def with_folder_levels(source: Source) -> Source:
    """Return a data set of folders ``GROUP/CLASS`` with the levels of the folders as labels, ``(n, L)``."""
    paths = [tuple(name.split("/")) for name in source.class_names]
    # (C, L): the label of each class at each level; a label is a path from the top, in the order of first appearance
    columns = []
    for depth in range(1, len(paths[0]) + 1):
        code = {path: index for index, path in enumerate(dict.fromkeys(path[:depth] for path in paths))}
        columns.append(torch.tensor([code[path[:depth]] for path in paths]))
    levels = torch.stack(columns, dim=1)
    train, test = (
        None if pool is None else Pool(pool.images, levels[pool.labels]) for pool in (source.train, source.test)
    )
    assert train is not None  # for the type checker
    return replace(source, train=train, test=test, labels_are="hierarchy")


def _parts(root: Path) -> tuple[Path | None, Path | None, list[str]]:
    """Return the training folder, the test folder and the names of the folders beside them."""
    folders = [root / entry.name for entry in _entries(root) if _is_folder(entry)]
    split = [path for path in folders if any(_is_folder(entry) for entry in _entries(path))]  # hold folders themselves
    trains = [path for path in split if path.name.lower() in TRAIN_NAMES]
    tests = sorted(
        (path for path in split if path.name.lower() in TEST_NAMES),
        key=lambda path: TEST_NAMES.index(path.name.lower()),
    )
    if len(trains) > 1 or len({path.name.lower() for path in tests}) < len(tests):
        same = ", ".join(printable(path.name) for path in (trains if len(trains) > 1 else tests))
        raise ValueError(f"Expected one folder of each part in {printable(root)}, but got {same}")
    if not trains:
        if tests:
            raise ValueError(
                f"Expected a folder {' or '.join(TRAIN_NAMES)} with class folders beside {printable(tests[0])}, but "
                "there is none"
            )
        if folders and all(path.name.lower() in TRAIN_NAMES + TEST_NAMES for path in folders):
            raise ValueError(
                f"Expected one folder per class in {printable(folders[0])}, but the parts of {printable(root)} hold "
                "images alone"
            )
        return None, None, []
    others = [path for path in folders if path not in (trains[0], *tests[:1])]
    classes = {path.name for path in _folders(trains[0])}
    unknown = [path.name for path in others if path not in tests and classes & {each.name for each in _folders(path)}]
    if unknown and not tests:
        raise ValueError(
            f"Expected the test part of {printable(root)} to be one of {', '.join(TEST_NAMES)}, but "
            f"{', '.join(map(printable, unknown))} has class folders too: rename it, or move it elsewhere"
        )
    return trains[0], tests[0] if tests else None, [f"{printable(path.name)}/" for path in others]


def _refuse_parts_of_other_names(root: Path) -> None:
    """Raise if all folders have names such as `training_set` and `test_set`: these are parts, not classes."""
    folders = [path for path in _folders(root) if _folders(path)]
    names = [path.name for path in folders]
    if len(names) > 1 and all(map(_PART.match, names)) and any(name.lower().startswith("train") for name in names):
        raise ValueError(
            f"Expected the parts of {printable(root)} to be named {TRAIN_NAMES[0]} and {TEST_NAMES[0]}, but got "
            f"{', '.join(map(printable, names))}: rename them (`?depth=1` takes them as classes)"
        )


def _refuse_inner_parts(folder: Path, names: Iterable[str]) -> None:
    """Raise if the names of folders below a folder are names of both parts."""
    lower = {name.lower() for name in names}
    train, test = lower.intersection(TRAIN_NAMES), lower.intersection(TEST_NAMES)
    if train and test:
        raise ValueError(
            f"Expected the parts above the class folders, but {printable(folder)} holds {min(train)} and {min(test)}: "
            "if these hold the classes, the path of the data ends there; `?depth=1` takes all images below a class "
            "folder as one set"
        )


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder in the order of their names, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(
            (entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"),
            key=lambda entry: entry.name,
        )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return True for a folder; a link that leads to itself is not a folder."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _folders(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in _entries(folder) if _is_folder(entry)]


class _Reader:
    """A reader of class folders that counts everything it leaves out.

    Attributes:
        left: The number of files and links left out, by kind.
    """

    def __init__(self, depth: int | None) -> None:
        self.depth = depth
        self.left: Counter[str] = Counter()
        self._read: dict[str, Path] = {}  # the folders that were read, by their real paths
        self._above: set[str] = set()  # the folders above these

    def read(self, part: Path, known: Sequence[str]) -> tuple[Pool, tuple[str, ...]]:
        """Read the class folders of a part.

        Args:
            part: The folder of the part.
            known: The class names of the parts before.

        Returns:
            The images with their labels, and all class names: the known ones, then the new ones.
        """
        folders = [part]
        for level in range(self.depth or 1):
            for folder in folders if level else ():
                _refuse_inner_parts(folder, [each.name for each in _folders(folder)])
            self.left["files beside the class folders"] += sum(
                _is_file(entry) for folder in folders for entry in _entries(folder)
            )
            folders = [each for folder in folders for each in _folders(folder)]
        if not folders:
            state = "holds no folder" if _entries(part) else "is empty"
            raise ValueError(f"Expected {printable(part)} to hold one folder per class, but it {state}")
        raw = [folder.relative_to(part).as_posix() for folder in folders]
        self._enter(folders)
        new = [name for name in map(printable, raw) if name not in set(known)]
        spelt = {name.strip().casefold(): name for name in known}
        if unlike := [f"{name!r} and {spelt[key]!r}" for name in new if (key := name.strip().casefold()) in spelt]:
            raise ValueError(
                f"Expected one spelling of a class in all parts, but got {', '.join(unlike)} in {printable(part)}"
            )
        names = [*known, *new]
        code = {name: label for label, name in enumerate(names)}
        if len(code) < len(names):
            raise ValueError(f"Expected class folders of {printable(part)} whose names differ when printed")
        found = [self._images_of(folder) for folder in folders]
        self._refuse_nested(folders, found)
        empty = [name for name, paths in zip(map(printable, raw), found, strict=True) if not paths]
        if empty:
            raise ValueError(
                f"Expected images ({', '.join(EXTENSIONS)}) in every class folder of {printable(part)}, but there are "
                f"none in {', '.join(empty)}"
            )
        labels = [code[printable(name)] for name, paths in zip(raw, found, strict=True) for _ in paths]
        return Pool(FileImages([path for paths in found for path in paths]), torch.tensor(labels)), tuple(names)

    def left_out(self, folders: Sequence[str] = ()) -> tuple[str, ...]:
        """Describe what was left out: folders beside the parts, then the numbers of files by kind."""
        counted = [f"{kind} ({number})" for kind, number in self.left.most_common() if number]
        return (*folders, *counted)

    def _enter(self, folders: Sequence[Path]) -> None:
        """Note which folders are read; raise if one is read twice, under two names or in two parts."""
        for folder in folders:
            real = os.path.realpath(folder)
            if real in self._read:
                both = f"{printable(self._read[real])} and {printable(folder)}"
                raise ValueError(f"Expected class folders that differ, but {both} are links to one folder")
            self._read[real] = folder
            self._above.update(map(str, Path(real).parents))

    def _images_of(self, folder: Path) -> list[str]:
        """Return the images in a folder and the folders below it, in the order of their paths."""
        images: list[str] = []
        folders = [os.fspath(folder)]
        while folders:
            for entry in _entries(folders.pop()):
                if _is_folder(entry):
                    if entry.is_symlink():
                        target = os.path.realpath(entry.path)
                        around = {target, *map(str, Path(target).parents)}
                        if target in self._above or not around.isdisjoint(self._read):
                            self.left["links to folders that are read anyway"] += 1
                            continue
                        self._enter([Path(target)])
                    folders.append(entry.path)
                elif not _is_file(entry):
                    self.left["entries that are not files"] += 1
                elif entry.name.lower().endswith(EXTENSIONS):
                    images.append(entry.path)
                else:
                    suffix = os.path.splitext(entry.name)[1]
                    self.left[f"{printable(suffix)} files" if suffix else "files without an extension"] += 1
        return sorted(images)

    def _refuse_nested(self, folders: Sequence[Path], found: Sequence[Sequence[str]]) -> None:
        """Raise if class folders hold several folders of images and no image: these may be the classes."""
        if self.depth is not None:
            return
        nested = {}
        for folder, paths in zip(folders, found, strict=True):
            holders = {os.path.dirname(path) for path in paths}
            if len(holders) > 1 and str(folder) not in holders:
                nested[folder] = {os.path.relpath(holder, folder) for holder in holders}
                _refuse_inner_parts(folder, [name for holder in nested[folder] for name in holder.split(os.sep)])
        if nested:
            folder, below = next(iter(nested.items()))
            inner = ", ".join(sorted(map(printable, below))[:3])
            raise ValueError(
                f"Expected images in the class folders, but {len(nested)} of {len(folders)} hold folders alone "
                f"({printable(folder.name)}: {inner}, ...): `?depth=2` takes the inner folders as classes, "
                "`?depth=1` the outer ones"
            )
