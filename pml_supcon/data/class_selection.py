"""`?classes=0-4` at the end of a data set's specification: some of its classes alone."""

import re

import torch

from pml_supcon.data.pool import Pool, Source


def with_classes(source: Source, wanted: str, spec: str) -> Source:
    """The same data set with some of its classes, numbered anew from 0 in their old order.

    Args:
        source: the data set.
        wanted: names or numbers of classes and ranges of numbers, joined by commas: `cat,dog`, `0-4`, `0,2,7-9`. A name
            goes before a number.
        spec: what was given, for errors.

    Raises:
        ValueError: a class that there is not, or fewer than two.
    """
    kept = sorted({label for part in wanted.split(",") for label in _labels_of(part, source.class_names, spec)})
    if len(kept) < 2:
        raise ValueError(f"Expected at least 2 classes after `classes=`, but got {spec!r}")
    return Source(
        train=_only(source.train, kept),
        test=None if source.test is None else _only(source.test, kept),
        class_names=tuple(source.class_names[label] for label in kept),
        symbols=source.symbols,
        shuffled=source.shuffled,
    )


def _labels_of(part: str, names: tuple[str, ...], spec: str) -> list[int]:
    if part in names:
        return [names.index(part)]
    numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        if first <= last < len(names):
            return list(range(first, last + 1))
    raise ValueError(
        f"Expected names of classes or numbers from 0 to {len(names) - 1} after `classes=`, such as `0-4` or "
        f"`{names[0]},{names[-1]}`, but got {part!r} in {spec!r}"
    )


def _only(pool: Pool, kept: list[int]) -> Pool:
    wanted = torch.tensor(kept)
    chosen = pool.select(torch.isin(pool.labels, wanted).nonzero()[:, 0].tolist())
    return Pool(chosen.images, torch.searchsorted(wanted, chosen.labels))
