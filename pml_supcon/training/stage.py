"""The two training stages: their parts, and how the settings build them."""

import json
from dataclasses import dataclass, replace
from typing import Any

import timm.layers
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pml_supcon.data.images import ImageData, LazyImages, MemoryImages
from pml_supcon.models import ChunkedEncoder, MomentumEncoder, create_encoder, feature_width
from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.training.config import TrainSettings
from pml_supcon.training.config.settings import DEFAULT_ENCODER, OptimizationSettings
from pml_supcon.training.dataloaders import build_batch_mix, build_loader, build_sampler
from pml_supcon.training.methods import Classification, Criterion, EncoderWithTop, build_criterion, build_top
from pml_supcon.training.optimization import build_optimizer, build_schedule
from pml_supcon.training.run import RunContext


@dataclass(frozen=True)
class Stage:
    """The parts of a training stage. Steps are counted over the whole run, from 1.

    Attributes:
        number: 1 or 2; of a continual run, the task.
        plan: The optimisation settings.
        model: The trained model, unwrapped; its weights are saved.
        network: The model wrapped for the forward pass: in chunks, data-parallel.
        criterion: The loss.
        optimizer: The optimizer, prepared by accelerate.
        schedule: The learning rate of every step.
        sampler: The batches of image indices.
        loader: The batches of views.
        key_encoder: The momentum encoder that fills a queue, or None.
        ema: The moving average of the model, or None.
        first_step: The number of steps of the run before this stage.
        head: The trained head of stage 1, which the checkpoints of stage 2 keep; None in stage 1.
    """

    number: int
    plan: OptimizationSettings
    model: nn.Module
    network: nn.Module
    criterion: Criterion
    optimizer: Any
    schedule: Scheduler
    sampler: MultiViewBatchSampler
    loader: DataLoader[Any]
    key_encoder: MomentumEncoder | None = None
    ema: ModelEmaV3 | None = None
    first_step: int = 0
    head: nn.Module | None = None

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return len(self.sampler)

    @property
    def last_step(self) -> int:
        """The number of steps of the run at the end of this stage."""
        return self.first_step + self.steps_per_epoch * self.plan.epochs

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 1, of a step."""
        return (step - 1 - self.first_step) // self.steps_per_epoch + 1

    def ends_epoch(self, step: int) -> bool:
        """Return True for the last step of an epoch."""
        return (step - self.first_step) % self.steps_per_epoch == 0

    def scored(self) -> Any:
        """Return the model to score: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.module


def build_stage1(context: RunContext) -> Stage:
    """Build stage 1: the encoder, the method's head or classifier, and its loss."""
    set_seed(context.settings.seed)
    return build_stage(context, build_model(context), build_criterion(context.settings, context.split.levels))


def build_stage(
    context: RunContext,
    model: EncoderWithTop,
    criterion: Criterion,
    *,
    number: int = 1,
    first_step: int = 0,
    key_encoder: MomentumEncoder | None = None,
) -> Stage:
    """Build a stage that trains a model, with the optimisation of stage 1, on the batches of the context.

    ``key_encoder`` is the encoder of the keys; default: that of the settings.
    """
    settings, device = context.settings, context.accelerator.device
    network = model if settings.chunk_size is None else ChunkedEncoder(model, settings.chunk_size)
    ema = None if settings.ema is None else ModelEmaV3(model, settings.ema, use_warmup=True).to(device)
    if settings.momentum is not None:
        key_encoder = MomentumEncoder(network, settings.momentum)
    key_encoder = None if key_encoder is None else key_encoder.to(device)
    if settings.compile:
        model.compile()
    criterion.to(device)  # a queue is a buffer on the device of the embeddings
    plan, sampler = settings.stage1(), context.sampler
    optimizer = build_optimizer(plan, model, criterion)
    schedule = build_schedule(plan, optimizer, len(sampler))
    prepared, optimizer = context.accelerator.prepare(network, optimizer)
    loader = build_loader(
        context.data,
        context.images,
        sampler,
        device,
        settings.augment,
        settings.views,
        batch_mix=build_batch_mix(settings, context.data.num_classes),
        **_loading(settings),
    )
    stage = Stage(
        number, plan, model, prepared, criterion, optimizer, schedule, sampler, loader, key_encoder, ema, first_step
    )
    set_seed(settings.seed, device_specific=True)  # each process draws its own dropout masks
    return stage


def build_stage2(context: RunContext, first: Stage) -> Stage | None:
    """Build stage 2, a classifier on the frozen encoder of stage 1; return None without ``stage2_optimizer``."""
    settings, plan = context.settings, context.settings.stage2()
    if plan is None:
        return None
    stage = build_classifier_stage(
        first.scored().encoder,
        context.data,
        context.images,
        context.accelerator,
        plan,
        batch_size=settings.stage2_batch_size or settings.batch_size,
        augment=settings.stage2_augment or settings.augment,
        seed=settings.seed,
        label_smoothing=settings.stage2_label_smoothing,
        channels_last=settings.channels_last,
        first_step=first.last_step,
        **_loading(settings),
    )
    return replace(stage, head=first.scored().top)


def _loading(settings: TrainSettings) -> dict[str, Any]:
    return {"workers": settings.workers, "data_on_device": settings.data_on_device}


def build_classifier_stage(
    encoder: nn.Module,
    data: ImageData,
    images: MemoryImages | LazyImages,
    accelerator: Accelerator,
    plan: OptimizationSettings,
    *,
    batch_size: int,
    augment: str,
    seed: int,
    label_smoothing: float = 0.0,
    channels_last: bool = False,
    first_step: int = 0,
    **loading: Any,
) -> Stage:
    """Build a stage that trains a linear classifier on any frozen encoder over augmented images.

    ``loading`` are further arguments of ``build_loader``.
    """
    set_seed(seed)
    model = FrozenEncoderWithClassifier(encoder, data.num_classes, channels_last=channels_last)
    most = len(images) // accelerator.num_processes * accelerator.num_processes
    sampler = build_sampler(images.labels, min(batch_size, most), accelerator, seed=seed)
    optimizer = build_optimizer(plan, model)
    schedule = build_schedule(plan, optimizer, len(sampler))
    prepared, optimizer = accelerator.prepare(model, optimizer)
    loader = build_loader(data, images, sampler, accelerator.device, augment, num_views=1, **loading)
    criterion = Classification(label_smoothing)
    return Stage(2, plan, model, prepared, criterion, optimizer, schedule, sampler, loader, first_step=first_step)


def build_model(context: RunContext) -> EncoderWithTop:
    """Build the encoder with the method's head or classifier."""
    settings, data = context.settings, context.data
    try:
        encoder = create_encoder(
            settings.encoder or DEFAULT_ENCODER,
            in_chans=data.in_chans,
            image_size=data.image_size,
            small_stem=settings.small_stem,
            pretrained=settings.pretrained,
            checkpoint=settings.encoder_weights,
            **settings.encoder_args,
        )
    except (TypeError, ValueError) as error:  # TypeError: an argument that is given above
        if not settings.encoder_args:
            raise
        raise ValueError(f"With --encoder_args {json.dumps(settings.encoder_args)}: {error}") from error
    top = build_top(settings, feature_width(encoder), data.num_classes)
    if settings.sync_batch_norm:
        encoder = timm.layers.convert_sync_batchnorm(encoder)
        top = nn.SyncBatchNorm.convert_sync_batchnorm(top)
    return EncoderWithTop(encoder, top, channels_last=settings.channels_last)


class FrozenEncoderWithClassifier(EncoderWithTop):
    """A trained linear classifier on a frozen encoder, whose BatchNorm statistics are frozen too."""

    def __init__(self, encoder: nn.Module, num_classes: int, *, channels_last: bool = False) -> None:
        super().__init__(encoder, nn.Linear(feature_width(encoder), num_classes), channels_last=channels_last)
        encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> "FrozenEncoderWithClassifier":
        """Put the classifier alone into training mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return the features ``(N, width)`` of images, without gradients."""
        with torch.no_grad():
            return super().features(images)
