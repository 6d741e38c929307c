"""Views that follow from the place of a batch alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import Dataset, default_collate


class SeededDataset(Dataset[Any]):
    """A dataset whose random draws follow from the seed of each batch, as `MultiViewBatchSampler` gives it.

    Without it the views of a batch depend on all that was drawn before, and on which worker drew it. With it a batch is
    the same in every run with the sampler's seed, for any number of workers, and when training goes on from a
    checkpoint in the middle of an epoch. Draws from torch's global generator are meant, of the CPU or of `device`;
    its own state stays as it was. Batches come out made: the DataLoader needs `collate_fn=SeededDataset.collate`.

    Args:
        dataset: map-style; one with `__getitems__` is asked for a batch at once and makes the batch itself.
        device: where it draws.

    Raises:
        TypeError: when called, for a batch without a seed.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> from pml_supcon.samplers import MultiViewBatchSampler
        >>> from pml_supcon.views import MultiViewDataset
        >>> noisy = MultiViewDataset([(torch.zeros(3, 8, 8), 5)] * 4, lambda image: image + torch.rand(1))
        >>> data, sampler = SeededDataset(noisy), MultiViewBatchSampler([0] * 4, batch_size=4)
        >>> batches = []
        >>> for _ in range(2):
        ...     sampler.set_epoch(0)
        ...     batches += DataLoader(data, batch_sampler=sampler, collate_fn=data.collate)
        >>> bool((batches[0][0] == batches[1][0]).all())
        True
    """

    def __init__(self, dataset: Any, device: torch.device | str = "cpu") -> None:
        self.dataset, self.device = dataset, torch.device(device)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, batch: Sequence[int]) -> Any:
        """The samples of a batch, collated."""
        seed = getattr(batch, "seed", None)
        if not isinstance(seed, int):
            raise TypeError(
                "Expected batches with a `seed`, as `samplers.MultiViewBatchSampler` yields them, "
                f"but got {type(batch).__name__}"
            )
        with _seeded(seed, self.device):
            if hasattr(self.dataset, "__getitems__"):
                return self.dataset.__getitems__(batch)
            return default_collate([self.dataset[index] for index in batch])

    @staticmethod
    def collate(batch: Any) -> Any:
        """Pass on a batch that `__getitems__` has made."""
        return batch


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the CPU and of one device for a block, and put them back."""
    cuda = device.type == "cuda"
    index = (torch.cuda.current_device() if device.index is None else device.index) if cuda else 0
    with torch.random.fork_rng(devices=[index] if cuda else []):
        torch.default_generator.manual_seed(seed)  # not `torch.manual_seed`, which seeds all devices
        if cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
