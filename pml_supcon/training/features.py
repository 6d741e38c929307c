"""The features of images, computed by all processes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_convert

from pml_supcon.data.images import LazyImages, MemoryImages
from pml_supcon.models import feature_width
from pml_supcon.views import Change, evaluation_transform


class ImagesToEmbed(Dataset[Tensor]):
    """A data set of the images of a split, resized and normalised, read in whole batches.

    ``change`` applies to the resized uint8 images, before they are normalised.
    """

    def __init__(
        self,
        images: MemoryImages | LazyImages,
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        change: Change | None = None,
    ) -> None:
        self.images, self.change = images, change
        self.image_size, self.mean, self.std = image_size, mean, std

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """Return a batch, float ``(N, C, image_size, image_size)``."""
        places = torch.as_tensor(indices)
        if isinstance(self.images, MemoryImages):
            return self._transform(places)(self.images.images[places])
        singly = [self._transform(places[i : i + 1])(self.images[index][0]) for i, index in enumerate(indices)]
        return torch.stack(singly)

    def _transform(self, places: Tensor) -> Callable[[Any], Tensor]:
        change = self.change
        step = None if change is None else lambda images: change(images, places)
        return evaluation_transform(self.image_size, mean=self.mean, std=self.std, change=step)


@torch.no_grad()
def compute_features(
    encoder: nn.Module,
    images: ImagesToEmbed,
    indices: Sequence[int],
    accelerator: Accelerator,
    *,
    batch_size: int,
    workers: int = 0,
) -> Tensor | None:
    """Compute the features of images. A collective: every process must call it.

    Batches are the same for any number of processes P, and process p computes batches p, p + P, ...: the rounding of a
    batch does not depend on P.

    The encoder is on the accelerator's device, in float32, and is left in evaluation mode. Its buffers become the main
    process's: each process has updated its BatchNorm statistics by its own share of the last batch. ``workers`` is the
    number of loader workers of each process.

    Returns:
        Features ``(len(indices), width)``, float32 on the CPU, in the order of ``indices``. None on all but the main
        process.
    """
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    rank, number = accelerator.process_index, accelerator.num_processes
    loader = iter(
        DataLoader(
            images,
            batch_sampler=batches[rank::number],  # type: ignore[arg-type]  # lists of indices
            num_workers=workers,
            collate_fn=default_convert,
            pin_memory=accelerator.device.type == "cuda",
            generator=torch.Generator(),  # the iterator draws a seed, which must not advance the training's generator
        )
    )
    encoder.eval()
    for buffer in encoder.buffers():
        broadcast(buffer)
    width = feature_width(encoder)
    features = torch.empty(len(indices), width) if accelerator.is_main_process else None
    for start in range(0, len(batches), number):
        rows = torch.zeros(batch_size, width, device=accelerator.device)
        batch = next(loader, None)
        if batch is not None:
            rows[: len(batch)] = encoder(batch.to(accelerator.device, non_blocking=True)).float()
        gathered = accelerator.gather(rows)
        if features is not None:
            for place, part in enumerate(batches[start : start + number]):
                first = (start + place) * batch_size
                features[first : first + len(part)] = gathered[place * batch_size :][: len(part)].cpu()
    return features
