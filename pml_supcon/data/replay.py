"""A buffer of past samples for continual learning: the same number of each class, drawn uniformly at random."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pml_supcon._checks import check_int


class ReplayBuffer:
    """The samples of past tasks to train on again, by their indices.

    At the end of a task ``add`` draws from its samples, and each class so far gets the same share of the buffer.
    Samples of old classes beyond the share are removed. Each class then has a uniform sample of its images. The numbers
    of samples of two classes differ by one at most, unless a class has fewer samples than its share.

    Args:
        size: The largest number of samples, at least the number of classes.
        seed: The seed of all draws, >= 0.

    Examples:
        >>> buffer = ReplayBuffer(5)
        >>> buffer.add(torch.arange(10), torch.tensor([0] * 5 + [1] * 5))
        >>> buffer.add(torch.arange(10, 15), torch.tensor([2] * 5))
        >>> sorted(buffer.counts().values())
        [1, 2, 2]
    """

    def __init__(self, size: int, *, seed: int = 0) -> None:
        self.size = check_int("size", size, low=1)
        self.seed = check_int("seed", seed, low=0)
        self._held: dict[int, list[int]] = {}  # each in random order, so that its first samples are a uniform draw

    def __len__(self) -> int:
        """Return the number of samples."""
        return sum(map(len, self._held.values()))

    @property
    def indices(self) -> Tensor:
        """The indices of all samples, int64 ``(n,)``, by class."""
        return torch.tensor([index for own in self._held.values() for index in own], dtype=torch.long)

    def counts(self) -> dict[int, int]:
        """Return the number of samples of each class."""
        return {label: len(own) for label, own in self._held.items()}

    def add(self, indices: Tensor, labels: Tensor) -> None:
        """Draw samples of new classes, and remove samples of old classes that no longer fit.

        Args:
            indices: The indices of a task's samples, int64 ``(n,)``.
            labels: Their classes, int64 ``(n,)``.

        Raises:
            ValueError: If a class was added before, or the buffer is smaller than the number of classes.
        """
        new = labels.unique().tolist()
        if again := [label for label in new if label in self._held]:
            raise ValueError(f"Expected classes that the buffer does not have, but got {again}")
        check_buffer(self.size, len(self._held) + len(new))
        rng = np.random.default_rng((self.seed, len(self._held)))
        for label in new:
            self._held[label] = rng.permutation(indices[labels == label].numpy())[: self.size].tolist()
        # Equal shares; the rest goes to classes that have one sample more, drawn at random.
        share, rest = divmod(self.size, len(self._held))
        larger = [label for label, own in self._held.items() if len(own) > share]
        favoured = set(rng.permutation(larger)[:rest].tolist())
        self._held = {label: own[: share + (label in favoured)] for label, own in self._held.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the samples and options as plain values."""
        return {"size": self.size, "seed": self.seed, "held": [[label, own] for label, own in self._held.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Raises:
            ValueError: If it is of a buffer of another size or seed.
        """
        for name in ("size", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(f"Expected a buffer with {name}={getattr(self, name)}, but got {state[name]}")
        self._held = {label: list(own) for label, own in state["held"]}


def check_buffer(size: int, classes: int) -> None:
    """Raise ValueError unless a buffer has room for a sample of each class."""
    if size < classes:
        raise ValueError(
            f"Expected --buffer_size to be at least {classes}, a sample of each class of the stream, but got {size}"
        )
