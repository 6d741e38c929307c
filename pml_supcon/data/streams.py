"""Streams of tasks for continual learning: new classes, or the same classes in changed images, in each task."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, rotate

from pml_supcon.data.images import ImageData, LazyImages, MemoryImages

Scenario = Literal["class", "task", "domain"]
Domain = Literal["permutation", "rotation"]
Tasks = tuple[tuple[int, ...], ...]
DOMAIN_SEED = 1_000_003  # the distance between the seeds of two domains
SHOWN = 10  # classes named in an error
HALF_TURN = 180  # degrees, as in Rotated MNIST (Lopez-Paz and Ranzato, NeurIPS 2017)


def plan_tasks(
    class_names: Sequence[str],
    *,
    number: int,
    given: Sequence[Sequence[int | str]] = (),
    scenario: Scenario = "class",
    shuffle: bool = False,
    seed: int = 0,
) -> Tasks:
    """Return the classes of each task.

    Args:
        class_names: The name of each class 0..C-1.
        number: The number of tasks, of equal size, where none are ``given``.
        given: The classes of each task, as names, or as positions where the names are not numbers.
        scenario: "class" or "task": each task has its own classes; "domain": every task has all of them.
        shuffle: Draw the order of the classes with ``seed``; otherwise they keep their order.
        seed: The seed.

    Returns:
        A tuple of class labels for each task.

    Raises:
        ValueError: If a class is unknown or in two tasks, a task has no class, the first one has a single class, there
            are more tasks than classes, or ``number`` does not divide the classes.

    Examples:
        >>> plan_tasks(["a", "b", "c", "d"], number=2)
        ((0, 1), (2, 3))
        >>> plan_tasks(["a", "b", "c", "d"], number=2, given=[["d", "a"], ["b"]])
        ((3, 0), (1,))
    """
    classes = len(class_names)
    if scenario == "domain":
        return (tuple(range(classes)),) * number
    if given:
        tasks = tuple(tuple(_label_of(entry, class_names) for entry in task) for task in given)
        _check_given(tasks, class_names)
    else:
        if number > classes:
            raise ValueError(f"Expected --num_tasks to be at most the {classes} classes, but got {number}")
        if classes % number:
            raise ValueError(
                f"Expected --num_tasks to divide the {classes} classes (--tasks lists tasks of any size), but got "
                f"{number}"
            )
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(classes, generator=generator) if shuffle else torch.arange(classes)
        tasks = tuple(map(tuple, order.view(number, -1).tolist()))
    if len(tasks[0]) == 1:
        raise ValueError(
            f"Expected at least two classes in the first task, which has nothing else to contrast, but got "
            f"{class_names[tasks[0][0]]!r} alone"
        )
    return tasks


def check_tasks(tasks: Tasks, class_names: Sequence[str], train_labels: Tensor, test_labels: Tensor) -> None:
    """Raise ValueError unless every task has training images of each class, and test images."""
    for number, task in enumerate(tasks, 1):
        names = ", ".join(class_names[label] for label in task)
        for label in task:
            if not bool((train_labels == label).any()):
                raise ValueError(
                    f"Expected training images of every class of task {number} ({names}), but class "
                    f"{class_names[label]!r} has none"
                )
        if not bool(torch.isin(test_labels, torch.tensor(task)).any()):
            raise ValueError(f"Expected test images of task {number} ({names}), but it has none")


@dataclass(frozen=True)
class TaskStream:
    """The images of a stream of tasks.

    A *stream label* is a class of one task: the class itself, or, in the scenario "domain", the class in one domain,
    ``class + C * domain``, because the same class in a new domain counts as a new one (Cha et al., ICCV 2021). A
    *place* is the index of a training image in its domain, ``index + n * domain`` with n training images.

    Attributes:
        data: All images, with classes.
        tasks: The classes of each task; see ``plan_tasks``.
        scenario: The scenario.
        domain: The change of the images in the scenario "domain". The first task has them as they are; each other one
            permutes their pixels, or rotates them by an angle below 180 degrees, both drawn with the seed.
        seed: The seed of the domains.

    Raises:
        ValueError: If domains are asked for of images that are not in memory.
    """

    data: ImageData
    tasks: Tasks
    scenario: Scenario = "class"
    domain: Domain = "permutation"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scenario == "domain" and not isinstance(self.data.train, MemoryImages):
            raise ValueError(
                "Expected images of one size that fit into memory with --scenario domain, but these are read from disk"
            )

    def stream_labels(self, task: int) -> list[int]:
        """Return the stream labels of a task, from 0."""
        return [label + self._offset(task) for label in self.tasks[task]]

    def classes(self, stream_labels: Tensor) -> Tensor:
        """Return the class of each stream label."""
        return stream_labels % self.data.num_classes

    def training_places(self, task: int) -> Tensor:
        """Return the places of the training images of a task, int64 ``(n,)``, ascending."""
        own = torch.isin(self.data.train_labels, torch.tensor(self.tasks[task])).nonzero()[:, 0]
        return own + (task * len(self.data.train) if self.scenario == "domain" else 0)

    def labels_at(self, places: Tensor) -> Tensor:
        """Return the stream labels of training images, int64 ``(n,)``."""
        number = len(self.data.train)
        return self.data.train_labels[places % number] + self.data.num_classes * (places // number)

    def training_images(self, places: Tensor, labels: Tensor) -> MemoryImages | LazyImages:
        """Return the training images at these places, with these labels."""
        number = len(self.data.train)
        return self._changed(self.data.train, places % number, places // number, labels)

    def test_images(self, task: int) -> MemoryImages | LazyImages:
        """Return the test images of a task, with their classes."""
        own = torch.isin(self.data.test_labels, torch.tensor(self.tasks[task])).nonzero()[:, 0]
        domains = torch.full_like(own, task if self.scenario == "domain" else 0)
        return self._changed(self.data.test, own, domains, self.data.test_labels[own])

    def _offset(self, task: int) -> int:
        return task * self.data.num_classes if self.scenario == "domain" else 0

    def _changed(
        self, images: MemoryImages | LazyImages, indices: Tensor, domains: Tensor, labels: Tensor
    ) -> MemoryImages | LazyImages:
        """Select images and apply the change of their domains."""
        chosen = images.select(indices, labels)
        if self.scenario == "domain" and isinstance(chosen, MemoryImages):  # `__post_init__` refuses others
            for domain in domains.unique().tolist():
                rows = domains == domain
                chosen.images[rows] = change_images(chosen.images[rows], self.domain, domain, self.seed)
        return chosen


def change_images(images: Tensor, kind: Domain, domain: int, seed: int) -> Tensor:
    """Apply the change of domain number ``domain`` to uint8 images ``(n, C, H, W)``; domain 0 has none."""
    if domain == 0:
        return images
    generator = torch.Generator().manual_seed(seed + DOMAIN_SEED * domain)
    if kind == "permutation":
        order = torch.randperm(math.prod(images.shape[-2:]), generator=generator)
        return images.flatten(2)[..., order].view(images.shape)
    angle = HALF_TURN * float(torch.rand((), generator=generator))
    turned: Tensor = rotate(images, angle, InterpolationMode.BILINEAR)
    return turned


def _label_of(entry: int | str, names: Sequence[str]) -> int:
    """Return the class that an entry of `--tasks` names."""
    if str(entry) in names:
        return list(names).index(str(entry))
    position = int(entry) if str(entry).isdecimal() and not all(name.isdecimal() for name in names) else -1
    if 0 <= position < len(names):
        return position
    known = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    raise ValueError(f"Expected classes among {known} in --tasks, but got {entry!r}")


def _check_given(tasks: Tasks, names: Sequence[str]) -> None:
    owner: dict[int, int] = {}
    for number, task in enumerate(tasks, 1):
        if not task:
            raise ValueError(f"Expected a class in each task of --tasks, but task {number} has none")
        for label in task:
            if label in owner:
                raise ValueError(
                    f"Expected each class once in --tasks, but class {names[label]!r} is in task {owner[label]} and in "
                    f"task {number}"
                )
            owner[label] = number
