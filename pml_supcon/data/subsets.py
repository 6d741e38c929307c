"""Train and test of a source, and subsets of them with every class in its share."""

from typing import Literal

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from pml_supcon.data.pool import Pool, Source

SPLIT_SEED = 0  # of the 70/30 split: the same test images in every run, whatever the run's seed
TEST_SHARE = 0.3
NewClasses = Literal["none", "all", "some"]  # that test may have and train lacks


def split_source(source: Source, spec: str, *, new_classes: NewClasses) -> tuple[Pool, Pool]:
    """Return train and test, splitting train where there is no test part.

    Raises:
        ValueError: there is nothing to train on or to tell apart, too little to split, or a test class not allowed.
    """
    if not len(source.train) or (source.test is not None and not len(source.test)):
        raise ValueError(f"Expected images in {spec!r}, but train or test has none")
    if len(source.train.labels.bincount().nonzero()) < 2:
        raise ValueError(f"Expected at least 2 classes in {spec!r}, but all images of train have one label")
    if source.test is not None:
        known, tested = set(source.train.labels.tolist()), set(source.test.labels.tolist())
        strange = sorted(tested - known)
        if strange and not (new_classes == "some" or (new_classes == "all" and not tested & known)):
            names = ", ".join(source.class_names[label] for label in strange)
            either = ", all or none of them" if new_classes == "all" else ""
            raise ValueError(
                f"Expected the test classes of {spec!r} to be among those of train{either}, but {names} are not"
            )
        return source.train, source.test
    labels = source.train.labels
    counts = labels.bincount()
    classes = int((counts > 0).sum())
    single = [source.class_names[label] for label in (counts == 1).nonzero().flatten().tolist()]
    if single:
        raise ValueError(
            f"Expected at least 2 images of every class of {spec!r}, to split it into train and test, but there is one "
            f"of {', '.join(single)}"
        )
    if int(len(labels) * TEST_SHARE) < classes:
        raise ValueError(
            f"Expected 30 % of the images of {spec!r} to cover its {classes} classes, but it has {len(labels)}"
        )
    chosen = train_test_split(
        range(len(labels)), test_size=TEST_SHARE, stratify=labels.numpy(), random_state=SPLIT_SEED
    )
    train, test = (source.train.select(sorted(indices)) for indices in chosen)
    return train, test


def subset_of(pool: Pool, most: int | None, name: str, seed: int, *, first: bool) -> Pool:
    """At most so many images: the first ones where that is asked for and they have all classes, else a drawn subset.

    Raises:
        ValueError: there are more classes; it names the argument.
    """
    if most is None or most >= len(pool):
        return pool
    classes = len(pool.labels.bincount().nonzero())
    if most < classes:
        raise ValueError(f"Expected argument `{name}` to be at least the number of classes, {classes}, but got {most}")
    if first and len(pool.labels[:most].bincount().nonzero()) == classes:
        return pool.select(range(most))
    return pool.select(stratified_subset(pool.labels, most, seed))


def stratified_subset(labels: Tensor, count: int, seed: int) -> list[int]:
    """Draw `count` indices with every class in its share, and at least one of each, in rising order.

    Args:
        labels: int64 (n,).
        count: at least the number of classes and at most n.
        seed: of the draw.

    Examples:
        >>> len(stratified_subset(torch.tensor([0] * 90 + [1] * 10), 20, seed=0))
        20
    """
    counts = labels.bincount()
    values = counts.nonzero().flatten()
    sizes = counts[values]
    exact = sizes * count / len(labels)
    quota = exact.floor().long().clamp(min=1)
    while (left := count - int(quota.sum())) != 0:  # round by the largest remainder
        gap = exact - quota
        if left > 0:
            quota[gap.masked_fill(quota >= sizes, -torch.inf).argmax()] += 1
        else:
            quota[gap.masked_fill(quota <= 1, torch.inf).argmin()] -= 1
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    for value, take in zip(values, quota.tolist(), strict=True):
        members = (labels == value).nonzero().squeeze(1)
        chosen += members[torch.randperm(len(members), generator=generator)[:take]].tolist()
    return sorted(chosen)
