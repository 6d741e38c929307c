"""The two stages, built from the settings and the data of a run."""

import timm.layers
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import nn

from pml_supcon.models import ChunkedEncoder, MomentumEncoder, create_encoder, feature_width
from pml_supcon.recipes.job import Job
from pml_supcon.recipes.loading import build_loader, build_stage2_sampler
from pml_supcon.recipes.methods import Classification, Criterion, EncoderWithTop, build_criterion, build_top
from pml_supcon.recipes.optimization import build_optimizer, build_schedule
from pml_supcon.recipes.settings import Plan
from pml_supcon.recipes.settings.model import DEFAULT_ENCODER
from pml_supcon.recipes.stage import Stage
from pml_supcon.recipes.stage2 import FrozenEncoderWithClassifier
from pml_supcon.samplers import MultiViewBatchSampler


def build_stage1(job: Job) -> Stage:
    """The encoder under what the method puts on it, and the method's loss."""
    settings, device = job.settings, job.accelerator.device
    set_seed(settings.seed)
    model = build_model(job)
    network = model if settings.chunk_size is None else ChunkedEncoder(model, settings.chunk_size)
    ema = None if settings.ema is None else ModelEmaV3(model, settings.ema, use_warmup=True).to(device)
    key_encoder = None if settings.momentum is None else MomentumEncoder(network, settings.momentum).to(device)
    if settings.compile:
        model.compile()
    criterion = build_criterion(settings).to(device)  # a queue lies with the embeddings
    stage = _build(job, 1, settings.stage1(), model, network, criterion, job.sampler, key_encoder, ema)
    set_seed(settings.seed, device_specific=True)  # processes draw different masks of dropout
    return stage


def build_stage2(job: Job, first: Stage) -> Stage | None:
    """A classifier on the encoder of stage 1, which stays as it is; None where no optimizer trains one."""
    settings, plan = job.settings, job.settings.stage2()
    if plan is None:
        return None
    set_seed(settings.seed)
    encoder, num_classes = first.scored().encoder, job.data.num_classes
    model = FrozenEncoderWithClassifier(encoder, num_classes, channels_last=settings.channels_last)
    sampler = build_stage2_sampler(settings, job.division.labels, job.accelerator)
    criterion = Classification(settings.stage2_label_smoothing)
    return _build(job, 2, plan, model, model, criterion, sampler, first_step=first.last_step)


def _build(
    job: Job,
    number: int,
    plan: Plan,
    model: EncoderWithTop,
    network: nn.Module,
    criterion: Criterion,
    sampler: MultiViewBatchSampler,
    key_encoder: MomentumEncoder | None = None,
    ema: ModelEmaV3 | None = None,
    first_step: int = 0,
) -> Stage:
    """What both stages have."""
    settings = job.settings
    optimizer = build_optimizer(plan, model)
    schedule = build_schedule(plan, optimizer, len(sampler))
    prepared, optimizer = job.accelerator.prepare(network, optimizer)
    augment, num_views = settings.augment, settings.views
    if number == 2:
        augment, num_views = settings.stage2_augment or augment, 1
    device = job.accelerator.device
    loader = build_loader(settings, job.data, job.images, sampler, device, augment=augment, num_views=num_views)
    return Stage(
        number, plan, model, prepared, criterion, optimizer, schedule, sampler, loader, key_encoder, ema, first_step
    )


def build_model(job: Job) -> EncoderWithTop:
    """The encoder with what the method puts on it."""
    settings, data = job.settings, job.data
    encoder = create_encoder(
        settings.encoder or DEFAULT_ENCODER,
        in_chans=data.in_chans,
        image_size=data.image_size,
        small_stem=settings.small_stem,
        pretrained=settings.pretrained,
        checkpoint=settings.encoder_weights,
        **settings.encoder_args,
    )
    top = build_top(settings, feature_width(encoder), data.num_classes)
    if settings.sync_batch_norm:
        encoder = timm.layers.convert_sync_batchnorm(encoder)
        top = nn.SyncBatchNorm.convert_sync_batchnorm(top)
    return EncoderWithTop(encoder, top, channels_last=settings.channels_last)
