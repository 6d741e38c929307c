"""What a run works with, built from the settings and checked before any long work."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm.optim
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pml_supcon import losses
from pml_supcon._extras import require_faiss
from pml_supcon.distributed import GlobalBatchLoss
from pml_supcon.models import (
    ChunkedEncoder,
    MomentumEncoder,
    ProjectionHead,
    check_encoder_name,
    create_encoder,
    feature_width,
)
from pml_supcon.recipes.data import ImageData, MemoryImages, open_data
from pml_supcon.recipes.run_folder import RunFolder, default_path
from pml_supcon.recipes.settings import DEFAULT_ENCODER, TrainSettings
from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.views import (
    MultiViewDataset,
    MultiViewTensorDataset,
    contrastive_augmentation,
    digit_augmentation,
    flatten_views,
    split_views,
)

Criterion = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class EncoderWithTop(nn.Module):
    """An encoder under a projection head or a classifier: views `(B, V, C, H, W)` to `(B, V, D)`."""

    def __init__(self, encoder: nn.Module, top: nn.Module) -> None:
        super().__init__()
        self.encoder, self.top = encoder, top

    def forward(self, views: Tensor) -> Tensor:
        """All views pass in one batch, so that BatchNorm sees them together."""
        rows: Tensor = self.top(self.encoder(flatten_views(views)))
        return split_views(rows, views.shape[1])


@dataclass(frozen=True)
class Job:
    """Data, model, loss and optimiser of a run, and the folder that takes its files.

    Attributes:
        network: the model, as it is trained.
        key_encoder: the momentum encoder that fills the queue, or None.
    """

    run: RunFolder
    data: ImageData
    model: EncoderWithTop
    sampler: MultiViewBatchSampler
    loader: DataLoader[Any]
    network: nn.Module
    key_encoder: MomentumEncoder | None
    criterion: Criterion
    optimizer: torch.optim.Optimizer


def prepare(settings: TrainSettings, accelerator: Accelerator) -> Job:
    """Build everything; what is wrong with the settings or the data is raised here."""
    run = RunFolder(settings.output or broadcast_object_list([default_path(settings)])[0])
    require_faiss()
    check_encoder_name(settings.encoder or DEFAULT_ENCODER)
    check_optimizer_name(settings.optimizer)
    criterion = build_criterion(settings, accelerator.device)
    with accelerator.main_process_first():  # one process downloads
        opened = open_data(
            settings.data, image_size=settings.image_size, max_train=settings.max_train, max_test=settings.max_test
        )
    sampler = build_sampler(settings, opened.train_labels, accelerator)
    data = opened.decode()
    set_seed(settings.seed)
    model = build_model(settings, data)
    network = build_network(settings, model)
    key_encoder = None if settings.momentum is None else MomentumEncoder(network, settings.momentum)
    optimizer = build_optimizer(settings, model)
    accelerator.wait_for_everyone()  # all have looked into the folder before one of them writes there
    if accelerator.is_main_process:
        run.create(settings)
    loader = build_loader(settings, data, sampler)
    return Job(run, data, model, sampler, loader, network, key_encoder, criterion, optimizer)


def build_criterion(settings: TrainSettings, device: torch.device) -> Criterion:
    """The loss of outputs `(B, V, D)`, labels `(B,)` and keys, over the batches of all processes."""
    if not settings.contrastive:
        return lambda logits, labels, keys: F.cross_entropy(flatten_views(logits), labels.repeat(logits.shape[1]))
    kind = losses.SupConLossIn if settings.method == "supcon_in" else losses.SupConLossOut
    contrastive: nn.Module = kind(
        settings.temperature,
        denominator=settings.denominator,
        contrast_mode=settings.contrast_mode,
        positives_cap=settings.positives_cap,
        num_views=settings.views,
        scale_by_temperature=settings.scale_by_temperature,
        backend=settings.backend,
    )
    if settings.queue_size is not None:
        contrastive = losses.QueueLoss(contrastive, settings.head_dim, settings.queue_size)
    spread = GlobalBatchLoss(contrastive).to(device)  # a queue lies with the embeddings

    def criterion(embeddings: Tensor, labels: Tensor, keys: Tensor | None) -> Tensor:
        loss: Tensor = spread(embeddings, None if settings.method == "simclr" else labels, keys=keys)
        return loss

    return criterion


def build_network(settings: TrainSettings, model: EncoderWithTop) -> nn.Module:
    """The model as it is trained: in chunks of images where that is asked for."""
    return model if settings.chunk_size is None else ChunkedEncoder(model, settings.chunk_size)


def build_sampler(settings: TrainSettings, labels: Tensor, accelerator: Accelerator) -> MultiViewBatchSampler:
    """Batches of image indices; several processes need equal shares, so that the last, smaller batch is dropped."""
    processes = accelerator.num_processes
    if settings.batch_size % processes:
        raise ValueError(
            f"Expected --batch_size to be a multiple of the {processes} processes, but got {settings.batch_size}"
        )
    return MultiViewBatchSampler(
        labels,
        settings.batch_size,
        max_per_class=settings.max_per_class,
        samples_per_class=settings.samples_per_class,
        drop_last=processes > 1,
        seed=settings.seed,
        num_replicas=processes,
        rank=accelerator.process_index,
    )


def build_model(settings: TrainSettings, data: ImageData) -> EncoderWithTop:
    """The encoder with a projection head, or with a classifier for cross entropy."""
    encoder = create_encoder(
        settings.encoder or DEFAULT_ENCODER,
        in_chans=data.in_chans,
        image_size=data.image_size,
        small_stem=settings.small_stem,
        pretrained=settings.pretrained,
        **settings.encoder_args,
    )
    width = feature_width(encoder)
    top = ProjectionHead(width, settings.head_dim) if settings.contrastive else nn.Linear(width, data.num_classes)
    return EncoderWithTop(encoder, top)


def check_optimizer_name(name: str) -> None:
    """Refuse what is no optimizer of timm."""
    names = timm.optim.list_optimizers()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"Expected --optimizer to be one of timm's optimizers, but got {name!r}{hint}")


def build_optimizer(settings: TrainSettings, model: nn.Module) -> torch.optim.Optimizer:
    """A timm optimizer, without decay on biases and norms."""
    optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
        model, opt=settings.optimizer, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    return optimizer


def build_loader(settings: TrainSettings, data: ImageData, sampler: MultiViewBatchSampler) -> DataLoader[Any]:
    """Batches `(B, V, C, H, W)` and labels `(B,)` of this process's share."""
    make = digit_augmentation if data.family == "digits" else contrastive_augmentation
    augmentation = make(data.image_size, mean=data.mean, std=data.std)
    views: Any
    if isinstance(data.train, MemoryImages):
        views = MultiViewTensorDataset(data.train.images, data.train.labels, augmentation, settings.views)
    else:
        views = MultiViewDataset(data.train, augmentation, settings.views)
    return DataLoader(
        views,
        batch_sampler=sampler,
        num_workers=settings.workers,
        collate_fn=getattr(views, "collate", None),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=settings.workers > 0,
    )
