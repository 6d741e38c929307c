"""A run: its context (processes, data, batches) and its folder (settings, checkpoints, record)."""

import errno
import fcntl
import json
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from pml_supcon._extras import require_faiss
from pml_supcon._files import write_atomic
from pml_supcon.data.images import ImageData, LazyImages, MemoryImages
from pml_supcon.data.load import OpenedData, open_data
from pml_supcon.data.splits import TrainingSplit, split_training_set
from pml_supcon.models import check_encoder_name
from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.training.checkpoint import Checkpoint, CheckpointError, CheckpointFolder, read_checkpoint
from pml_supcon.training.config import FREE_TO_CHANGE, TrainSettings
from pml_supcon.training.config.settings import DEFAULT_ENCODER
from pml_supcon.training.dataloaders import build_sampler, check_shares
from pml_supcon.training.optimization import build_optimizer, check_optimizer

CONFIG, METRICS, ENCODER, HEAD = "config.yaml", "metrics.json", "encoder", "head.safetensors"
CLASSIFIER = "classifier.safetensors"
LEAVES = (
    "checkpoints",
    "history.jsonl",
    METRICS,
    ENCODER,
    HEAD,
    CLASSIFIER,
)  # what a run leaves beside its configuration


class RunFolder:
    """Where a run leaves its files; nothing of another run is overwritten.

    Args:
        path: the folder; it may exist, but holds a run only where that one goes on.
        settings: of the run.

    Attributes:
        finished: the run that goes on had come to its end: there is nothing to do.

    Raises:
        FileExistsError: the folder holds a run already.
        NotADirectoryError: the path is a file.
        CheckpointError: the run in the folder has other settings.
        OSError: nothing can be written there.
    """

    def __init__(self, path: Path, settings: TrainSettings) -> None:
        self.path = path
        self.settings = settings
        self._held: TextIO | None = None
        self.checkpoints = CheckpointFolder(path / "checkpoints", settings.keep)
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"Expected --output to be a folder, but {path} is a file")
        exists = (path / CONFIG).exists()
        if exists and not settings.resume:
            raise FileExistsError(
                f"{path} already holds a run; name another --output, remove it, or go on with it by --resume"
            )
        if exists:
            self._check_config()
        elif left := [name for name in LEAVES if (path / name).exists()]:
            raise FileExistsError(
                f"{path} holds {', '.join(left)} of a run, but no {CONFIG}; name another --output, or remove it"
            )
        self.finished = exists and (path / METRICS).exists()
        check_writable(path)

    def create(self) -> None:
        """Make the folder and write the settings, which `--config` takes to repeat the run."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / CONFIG).exists():
            config = plain(self.settings)
            del config["output"], config["resume"]
            write_atomic(self.path / CONFIG, yaml.safe_dump(config, sort_keys=False))
        self._lock()
        self.checkpoints.clear()

    def release(self) -> None:
        """Let another process go on with the run."""
        if self._held is not None:
            self._held.close()

    def load(self, accelerator: Accelerator) -> Checkpoint | None:
        """The newest checkpoint of the run that goes on; None where there is none.

        Raises:
            CheckpointError: it is damaged or foreign, or of another number of processes or another precision.
        """
        newest = self.checkpoints.newest() if self.settings.resume else None
        if newest is None:
            return None
        checkpoint = read_checkpoint(newest, computed(self.settings))
        here = {"processes": accelerator.num_processes, "precision": accelerator.mixed_precision}
        for name, value in here.items():
            if checkpoint.about[name] != value:
                raise CheckpointError(
                    f"{newest} is of a run with {name}={checkpoint.about[name]}, but this one has {name}={value}: "
                    "launch it as before"
                )
        return checkpoint

    def last_good(self) -> str:
        """The newest checkpoint, in words."""
        return str(self.checkpoints.newest() or "none")

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write the flat record of the run."""
        write_atomic(self.path / METRICS, json.dumps(metrics, indent=2) + "\n")

    def metrics(self) -> dict[str, Any]:
        """The record of a run that has come to its end."""
        read: dict[str, Any] = json.loads((self.path / METRICS).read_text())
        return read

    def _lock(self) -> None:
        """Keep the run to this process, until it ends in whatever way."""
        # POSIX's lock on this file: not inherited by a loader's workers, which may outlive a kill
        self._held = (self.path / CONFIG).open("r+")
        try:
            fcntl.lockf(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FileExistsError(f"{self.path} holds a run that another process goes on with ({error})") from error

    def _check_config(self) -> None:
        file = self.path / CONFIG
        try:
            saved = dict(yaml.safe_load(file.read_text()))
        except (yaml.YAMLError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file} is not the configuration of a run: {error}") from error
        own = plain(self.settings)
        differences = [
            f"{name} is {saved.get(name)!r} there and {own[name]!r} here"
            for name in own
            if name not in FREE_TO_CHANGE and saved.get(name) != own[name]
        ]
        if differences:
            raise CheckpointError(f"{self.path} holds a run with other settings: {'; '.join(differences)}")


def plain(settings: TrainSettings) -> dict[str, Any]:
    """The settings as YAML and JSON hold them."""
    described = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}
    read: dict[str, Any] = json.loads(json.dumps(described))
    return read


def computed(settings: TrainSettings) -> dict[str, Any]:
    """The settings that decide what a run computes."""
    return {name: value for name, value in plain(settings).items() if name not in FREE_TO_CHANGE}


def existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return path if path.is_dir() else existing(path.absolute().parent)


def check_writable(path: Path, flag: str = "--output") -> None:
    """Refuse a folder, which a flag has named, in which nothing can be written."""
    try:
        with tempfile.TemporaryFile(dir=existing(path)) as file:
            file.write(b"?")
    except OSError as error:
        raise OSError(error.errno, f"Expected to write into {flag} {path}, but: {error.strerror}") from error


def check_space(path: Path, checkpoint: int, keep: int, there: int) -> None:
    """Refuse a disk without room for the checkpoints that are kept and the next, of so many bytes each.

    Args:
        path: the run's folder.
        checkpoint: bytes of one.
        keep: how many are kept.
        there: how many are there already.
    """
    free, needed = shutil.disk_usage(existing(path)).free, checkpoint * max(1, keep + 1 - there)
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"Expected room for {keep} + 1 checkpoints of about {checkpoint / 2**20:.1f} MiB at {path} (--keep), but "
            f"{free / 2**20:.1f} MiB are free",
        )


def default_path(settings: TrainSettings) -> Path:
    """A new name under `runs/`, from the data, the method and the time."""
    data = "".join(c if c.isalnum() else "-" for c in settings.data).strip("-")
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{data}-{settings.method}-seed{settings.seed}"


@dataclass(frozen=True)
class RunContext:
    """A run: where it leaves its files, and what it trains on.

    Attributes:
        run: takes the files.
        settings: of the run.
        accelerator: the processes.
        data: all images.
        split: which training images are trained on, with which labels.
        images: those, with the labels that training sees.
        held_out: those that are kept apart.
        sampler: the batches of stage 1.
    """

    run: RunFolder
    settings: TrainSettings
    accelerator: Accelerator
    data: ImageData
    split: TrainingSplit
    images: MemoryImages | LazyImages
    held_out: MemoryImages | LazyImages
    sampler: MultiViewBatchSampler


def open_run(settings: TrainSettings, accelerator: Accelerator) -> RunFolder:
    """The folder of the run, and all that can be checked without reading data."""
    run = RunFolder(settings.output or broadcast_object_list([default_path(settings)])[0], settings)
    check_shared_folder(run, accelerator)
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


def check_shared_folder(run: RunFolder, accelerator: Accelerator) -> None:
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


def build_context(settings: TrainSettings, run: RunFolder, accelerator: Accelerator) -> RunContext:
    """Read the data; what is wrong with it, or with batches of it, is raised here."""
    opened = open_images(settings, accelerator)
    split = split_training_set(
        opened.train_labels, held_out=settings.held_out, label_noise=settings.label_noise, seed=settings.seed
    )
    sampler = build_sampler(settings, split.labels, accelerator)  # before images are decoded
    data: Any = opened.decode()
    images, held_out = split.training_images(data), split.held_out_images(data)
    return RunContext(run, settings, accelerator, data, split, images, held_out, sampler)
