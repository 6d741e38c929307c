"""The samplers and data loaders of a stage."""

from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from pml_supcon.data.images import ImageData, LazyImages, MemoryImages
from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.training.config import TrainSettings
from pml_supcon.views import BatchMix, MultiViewDataset, MultiViewTensorDataset, SeededDataset, augmentation


def build_sampler(
    labels: Tensor, batch_size: int, accelerator: Accelerator, *, seed: int, **options: Any
) -> MultiViewBatchSampler:
    """Build the batch sampler of a stage; several processes drop the last, smaller batch to have equal shares."""
    return MultiViewBatchSampler(
        labels,
        batch_size,
        drop_last=accelerator.num_processes > 1,
        seed=seed,
        num_replicas=accelerator.num_processes,
        rank=accelerator.process_index,
        **options,
    )


def build_stage1_sampler(settings: TrainSettings, labels: Tensor, accelerator: Accelerator) -> MultiViewBatchSampler:
    """Build the batch sampler of stage 1; soft labels and numbers are shuffled."""
    options: dict[str, Any] = {"max_per_class": settings.max_per_class, "samples_per_class": settings.samples_per_class}
    options |= {"draw": settings.draw, "beta": settings.draw_beta}
    if settings.labels in ("soft", "numbers"):
        labels = torch.zeros(len(labels), dtype=torch.long)
    else:
        options["labels_are"] = settings.labels
    return build_sampler(labels, settings.batch_size, accelerator, seed=settings.seed, **options)


def build_batch_mix(settings: TrainSettings, num_classes: int) -> BatchMix | None:
    """Build the mixup or CutMix of the settings, or return None."""
    alphas = {"mixup": settings.mixup, "cutmix": settings.cutmix}
    given = [name for name, alpha in alphas.items() if alpha is not None]
    if not given:
        return None
    kind: Any = given[0] if len(given) == 1 else "both"
    return BatchMix(kind, alpha=alphas[given[0]] or 0.0, num_classes=num_classes)


def check_batch_sizes(settings: TrainSettings, accelerator: Accelerator) -> None:
    """Raise ValueError unless batch sizes are multiples of the number of processes."""
    for name in ("batch_size", "stage2_batch_size"):
        size = getattr(settings, name)
        if size is not None and size % accelerator.num_processes:
            raise ValueError(
                f"Expected --{name} to be a multiple of the {accelerator.num_processes} processes, but got {size}"
            )


def build_loader(
    data: ImageData,
    images: MemoryImages | LazyImages,
    sampler: MultiViewBatchSampler,
    device: torch.device,
    augment: str,
    num_views: int,
    *,
    batch_mix: BatchMix | None = None,
    workers: int = 0,
    data_on_device: Literal["auto"] | bool = "auto",
) -> DataLoader[Any]:
    """Build the loader of this process's views ``(B, V, C, H, W)`` and labels ``(B, ...)``, mixed by ``batch_mix``.

    The batches do not depend on the number of workers.

    Raises:
        ValueError: If ``data_on_device`` is True without a GPU, or the images are not in memory.
    """
    if augment == "auto":
        augment = "digits" if data.family == "digits" else "simclr"
    transform = augmentation(augment, data.image_size, mean=data.mean, std=data.std, family=data.family)
    in_memory = isinstance(images, MemoryImages)
    if data_on_device is True and not in_memory:
        raise ValueError("Expected images of one size that fit into memory with --data_on_device, but got others")
    if data_on_device is True and device.type != "cuda":
        raise ValueError(f"Expected a GPU with --data_on_device, but got {device.type}")
    on_device = in_memory and device.type == "cuda" and data_on_device is not False
    home = device if on_device else torch.device("cpu")
    views: Any
    if isinstance(images, MemoryImages):
        views = MultiViewTensorDataset(images.images.to(home), images.labels.to(home), transform, num_views)
    else:
        views = MultiViewDataset(images, transform, num_views)
    workers = 0 if on_device else workers
    return DataLoader(
        SeededDataset(views, home, batch_transform=batch_mix),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=SeededDataset.collate,
        pin_memory=device.type == "cuda" and not on_device,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # the iterators draw a seed, which must not advance the training's generator
    )
