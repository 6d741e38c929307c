"""What a run works with, built from the settings and checked before any long work."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm.layers
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list, set_seed
from timm.utils import ModelEmaV3
from torch import nn

from pml_supcon._extras import require_faiss
from pml_supcon.models import ChunkedEncoder, MomentumEncoder, check_encoder_name, create_encoder, feature_width
from pml_supcon.recipes.data import ImageData, open_data
from pml_supcon.recipes.division import Division, divide
from pml_supcon.recipes.loading import build_loader, build_sampler, build_stage2_sampler, check_shares
from pml_supcon.recipes.methods import Classification, EncoderWithTop, build_criterion, build_top
from pml_supcon.recipes.optimization import build_optimizer, build_schedule, check_optimizer
from pml_supcon.recipes.run_folder import RunFolder, check_space, default_path
from pml_supcon.recipes.run_state import bytes_of
from pml_supcon.recipes.settings import TrainSettings
from pml_supcon.recipes.settings.model import DEFAULT_ENCODER
from pml_supcon.recipes.stage import Stage
from pml_supcon.recipes.stage2 import FrozenEncoderWithClassifier


@dataclass(frozen=True)
class Job:
    """Data, first stage and folder of a run; the second stage is built when the first one is done.

    Attributes:
        run: takes the files.
        data: the images.
        division: which training images are trained on, with which labels.
        stage1: what is trained first.
        build_stage2: makes the second stage; None where there is none to train.
    """

    run: RunFolder
    data: ImageData
    division: Division
    stage1: Stage
    build_stage2: Callable[[], Stage] | None


def open_run(settings: TrainSettings, accelerator: Accelerator) -> RunFolder:
    """The folder of the run, and all that can be checked without reading data."""
    run = RunFolder(settings.output or broadcast_object_list([default_path(settings)])[0], settings)
    require_faiss()
    check_encoder_name(settings.encoder or DEFAULT_ENCODER)
    check_optimizer(settings.optimizer, "optimizer")
    if settings.stage2_optimizer is not None:
        check_optimizer(settings.stage2_optimizer, "stage2_optimizer")
    for plan in (settings.stage1(), settings.stage2()):
        if plan is not None:
            build_optimizer(plan, nn.Linear(1, 1))  # refuses arguments now, not when stage 1 is done
    if settings.encoder_weights is not None and not settings.encoder_weights.exists():
        raise FileNotFoundError(
            f"Expected --encoder_weights to be a file or a folder, but got {settings.encoder_weights}"
        )
    check_shares(settings, accelerator)
    if settings.sync_batch_norm and accelerator.device.type != "cuda":
        raise ValueError(f"Expected GPUs with --sync_batch_norm, as torch has it, but got {accelerator.device.type}")
    return run


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that is not installed."""
    names = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    if name is not None and name not in names:
        raise ImportError(
            f"Expected --tracker to be one that is installed ({', '.join(names) or 'none is'}), but got {name!r}"
        )


def prepare(settings: TrainSettings, run: RunFolder, accelerator: Accelerator) -> Job:
    """Build everything; what is wrong with the settings or the data is raised here."""
    with accelerator.main_process_first():  # one process downloads
        opened = open_data(
            settings.data, image_size=settings.image_size, max_train=settings.max_train, max_test=settings.max_test
        )
    if settings.train_fraction < 1:
        opened = opened.with_train_fraction(settings.train_fraction, settings.seed)
    division = divide(
        opened.train_labels, held_out=settings.held_out, label_noise=settings.label_noise, seed=settings.seed
    )
    sampler = build_sampler(settings, division.labels, accelerator)
    data = opened.decode()
    set_seed(settings.seed)
    model = build_model(settings, data)
    network = model if settings.chunk_size is None else ChunkedEncoder(model, settings.chunk_size)
    criterion = build_criterion(settings).to(accelerator.device)  # a queue lies with the embeddings
    stage = build_stage(settings, model, network, criterion, sampler, data, division, accelerator)
    check_space(run.path, bytes_of(stage), settings.keep)
    accelerator.wait_for_everyone()  # all have looked into the folder before one of them writes there
    if accelerator.is_main_process:
        run.create()
    trains_stage2 = not settings.has_classifier and settings.stage2_optimizer is not None

    def build_stage2() -> Stage:
        return second_stage(settings, stage, data, division, accelerator)

    return Job(run, data, division, stage, build_stage2 if trains_stage2 else None)


def build_stage(
    settings: TrainSettings,
    model: EncoderWithTop,
    network: nn.Module,
    criterion: Any,
    sampler: Any,
    data: ImageData,
    division: Division,
    accelerator: Accelerator,
) -> Stage:
    """Stage 1."""
    plan = settings.stage1()
    optimizer = build_optimizer(plan, model)
    schedule = build_schedule(plan, optimizer, len(sampler))
    ema = None if settings.ema is None else ModelEmaV3(model, settings.ema).to(accelerator.device)
    key_encoder = None
    if settings.momentum is not None:
        key_encoder = MomentumEncoder(network, settings.momentum).to(accelerator.device)
    if settings.compile:
        model.compile()
    prepared, optimizer = accelerator.prepare(network, optimizer)
    loader = build_loader(
        settings,
        data,
        division.training_images(data),
        sampler,
        accelerator.device,
        augment=settings.augment,
        num_views=settings.views,
    )
    return Stage(1, plan, model, prepared, criterion, optimizer, schedule, sampler, loader, key_encoder, ema)


def second_stage(
    settings: TrainSettings, first: Stage, data: ImageData, division: Division, accelerator: Accelerator
) -> Stage:
    """Stage 2: a classifier on the encoder of stage 1, which stays as it is."""
    plan = settings.stage2()
    assert plan is not None  # for the type checker: it is built where there is one
    encoder = first.scored().encoder
    set_seed(settings.seed)
    model = FrozenEncoderWithClassifier(encoder, data.num_classes, channels_last=settings.channels_last)
    sampler = build_stage2_sampler(settings, division.labels, accelerator)
    optimizer = build_optimizer(plan, model)
    schedule = build_schedule(plan, optimizer, len(sampler))
    network, optimizer = accelerator.prepare(model, optimizer)
    loader = build_loader(
        settings,
        data,
        division.training_images(data),
        sampler,
        accelerator.device,
        augment=settings.stage2_augment or settings.augment,
        num_views=1,
    )
    criterion = Classification(settings.stage2_label_smoothing)
    return Stage(2, plan, model, network, criterion, optimizer, schedule, sampler, loader, first_step=first.last_step)


def build_model(settings: TrainSettings, data: ImageData) -> EncoderWithTop:
    """The encoder with what the method puts on it."""
    encoder = create_encoder(
        settings.encoder or DEFAULT_ENCODER,
        in_chans=data.in_chans,
        image_size=data.image_size,
        small_stem=settings.small_stem,
        pretrained=settings.pretrained,
        checkpoint=settings.encoder_weights,
        **settings.encoder_args,
    )
    if settings.sync_batch_norm:
        encoder = timm.layers.convert_sync_batchnorm(encoder)
    top = build_top(settings, feature_width(encoder), data.num_classes)
    if settings.sync_batch_norm:
        top = nn.SyncBatchNorm.convert_sync_batchnorm(top)
    return EncoderWithTop(encoder, top, channels_last=settings.channels_last)
