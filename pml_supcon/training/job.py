"""What a run works with, opened from the settings and checked before any long work."""

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator, DistributedType
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from pml_supcon._extras import require_faiss
from pml_supcon.data.division import Division, divide
from pml_supcon.data.images import ImageData, LazyImages, MemoryImages
from pml_supcon.data.opening import OpenedData, open_data
from pml_supcon.models import check_encoder_name
from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.training.config import TrainSettings
from pml_supcon.training.config.model import DEFAULT_ENCODER
from pml_supcon.training.dataloaders import build_sampler, check_shares
from pml_supcon.training.optimization import build_optimizer, check_optimizer
from pml_supcon.training.run_folder import RunFolder, default_path


@dataclass(frozen=True)
class Job:
    """A run: where it leaves its files, and what it trains on.

    Attributes:
        run: takes the files.
        settings: of the run.
        accelerator: the processes.
        data: all images.
        division: which training images are trained on, with which labels.
        images: those, with the labels that training sees.
        held_out: those that are kept apart.
        sampler: the batches of stage 1.
    """

    run: RunFolder
    settings: TrainSettings
    accelerator: Accelerator
    data: ImageData
    division: Division
    images: MemoryImages | LazyImages
    held_out: MemoryImages | LazyImages
    sampler: MultiViewBatchSampler


def open_run(settings: TrainSettings, accelerator: Accelerator) -> RunFolder:
    """The folder of the run, and all that can be checked without reading data."""
    run = RunFolder(settings.output or broadcast_object_list([default_path(settings)])[0], settings)
    check_processes(accelerator)
    check_same_everywhere(run, accelerator)
    require_faiss()
    check_encoder_name(settings.encoder or DEFAULT_ENCODER)
    for plan, flag in ((settings.stage1(), "optimizer"), (settings.stage2(), "stage2_optimizer")):
        if plan is not None:
            check_optimizer(plan.optimizer, flag)
            build_optimizer(plan, nn.Linear(1, 1))  # refuses arguments now, not when stage 1 is done
    if settings.encoder_weights is not None and not settings.encoder_weights.exists():
        raise FileNotFoundError(
            f"Expected --encoder_weights to be a file or a folder, but got {settings.encoder_weights}"
        )
    check_shares(settings, accelerator)
    if settings.sync_batch_norm and accelerator.device.type != "cuda":
        raise ValueError(f"Expected GPUs with --sync_batch_norm, as torch has it, but got {accelerator.device.type}")
    return run


def check_processes(accelerator: Accelerator) -> None:
    """Refuse ways to launch under which a process does not hold the whole model, or a step is not a step."""
    whole = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in whole:
        raise ValueError(f"Expected data-parallel processes, but got {accelerator.distributed_type.value}")
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"Expected no gradient accumulation (--chunk_size does that, exactly), but got "
            f"{accelerator.gradient_accumulation_steps} steps"
        )


def check_same_everywhere(run: RunFolder, accelerator: Accelerator) -> None:
    """Refuse a folder that machines do not share: they would go on from different steps."""
    newest = run.checkpoints.newest() if run.settings.resume else None
    seen = gather_object([(run.finished, None if newest is None else newest.name)])
    if accelerator.num_processes > 1 and len(set(seen)) > 1:
        found = sorted({str(name) for _, name in seen})
        raise ValueError(f"Expected --output {run.path} to be one folder for all processes, but they see {found}")


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that is not installed."""
    names = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    if name is not None and name not in names:
        raise ImportError(
            f"Expected --tracker to be one that is installed ({', '.join(names) or 'none is'}), but got {name!r}"
        )


def open_images(settings: TrainSettings, accelerator: Accelerator) -> OpenedData:
    """The images that the settings of a training name, not decoded yet."""
    with accelerator.main_process_first():  # one process downloads
        opened = open_data(
            settings.data,
            image_size=settings.image_size,
            max_train=settings.max_train,
            max_test=settings.max_test,
            new_classes="all",
        )
    if settings.train_fraction < 1:
        opened = opened.with_train_fraction(settings.train_fraction, settings.seed)
    return opened


def open_job(settings: TrainSettings, run: RunFolder, accelerator: Accelerator) -> Job:
    """Read the data; what is wrong with it, or with batches of it, is raised here."""
    opened = open_images(settings, accelerator)
    division = divide(
        opened.train_labels, held_out=settings.held_out, label_noise=settings.label_noise, seed=settings.seed
    )
    sampler = build_sampler(settings, division.labels, accelerator)  # before images are decoded
    data: Any = opened.decode()
    images, held_out = division.training_images(data), division.held_out_images(data)
    return Job(run, settings, accelerator, data, division, images, held_out, sampler)
