"""A run: its context (processes, data, batches) and its folder (settings, checkpoints, record)."""

import errno
import functools
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from pml_supcon._console import say
from pml_supcon._extras import require_faiss
from pml_supcon._files import kind_of, remove_partials, write_atomic
from pml_supcon.data.broken import replace_broken
from pml_supcon.data.images import ImageData, LazyImages, MemoryImages
from pml_supcon.data.load import OpenedData, open_data
from pml_supcon.data.splits import TrainingSplit, split_training_set
from pml_supcon.models import check_encoder_name
from pml_supcon.models.pretrained import has_local_weights
from pml_supcon.models.storage import read_weights
from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointFolder,
    advice,
    check_settings,
    read_checkpoint,
)
from pml_supcon.training.config import TrainSettings
from pml_supcon.training.config.settings import DEFAULT_ENCODER, FREE_TO_CHANGE, RunSettings
from pml_supcon.training.config.yaml_files import read_yaml
from pml_supcon.training.dataloaders import build_stage1_sampler, check_batch_sizes
from pml_supcon.training.digests import (
    CLASSIFIER,
    CONFIG,
    CONTINUAL,
    DIGESTS,
    ENCODER,
    HEAD,
    HISTORY,
    METRICS,
    check_digest,
    check_encoder_folder,
    check_finished,
    write_record,
)
from pml_supcon.training.lock import FolderLock
from pml_supcon.training.methods import build_target
from pml_supcon.training.optimization import check_optimizer, try_optimizer
from pml_supcon.training.processes import on_main

Settings = TypeVar("Settings", bound=RunSettings)
RUN_FILES = ("checkpoints", HISTORY, DIGESTS, METRICS, CONTINUAL, ENCODER, HEAD, CLASSIFIER)  # besides the settings


class RunFolder(Generic[Settings]):
    """The folder of a run. It never overwrites another run.

    Args:
        path: The folder. It may hold a run only with ``resume``.
        settings: The settings of the run.

    Attributes:
        finished: True if the resumed run is already complete; known after ``open``.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.settings = settings
        self.finished = False
        self.checkpoints = CheckpointFolder(path / "checkpoints", settings.keep)
        self._lock = FolderLock(path)

    def open(self) -> None:
        """Lock the folder for the whole run, on the main process, and check what it holds. Call it on all processes.

        Raises:
            FileExistsError: If the folder already holds a run and ``resume`` is not set, or another process has it.
            NotADirectoryError: If the path is a file.
            CheckpointError: If the run in the folder has other settings.
            DamageError: If the run is finished, and a file of it is damaged.
            OSError: If the folder is not writable.
        """
        self.finished = on_main(self._lock_and_check)

    def create(self) -> None:
        """Write the settings; ``--config`` of that file repeats the run. Remove the temporary files of a killed run."""
        for folder in (self.path, self.path / ENCODER):
            remove_partials(folder)
        self.checkpoints.clear()
        if not (self.path / CONFIG).exists():
            config = plain(self.settings)
            del config["output"], config["resume"]
            write_atomic(self.path / CONFIG, yaml.safe_dump(config, sort_keys=False))

    def release(self) -> None:
        """Release the lock on the folder, and remove the folder if the run has written nothing."""
        self._lock.release()

    def load(self, accelerator: Accelerator, data: ImageData) -> Checkpoint | None:
        """Return the newest checkpoint of a resumed run, or None.

        Raises:
            CheckpointError: If it has other settings or images, another number of processes or another precision.
            DamageError: If it or the history is damaged.
        """
        newest = self.checkpoints.newest() if self.settings.resume else None
        if newest is None:
            return None
        checkpoint = read_checkpoint(newest, computed(self.settings))
        check_digest(self.path / HISTORY, checkpoint.about["history"], advice(newest), first=True)
        check_images(newest, checkpoint.about, images_of(data))
        here = {"processes": accelerator.num_processes, "precision": accelerator.mixed_precision}
        for name, value in here.items():
            if checkpoint.about[name] != value:
                raise CheckpointError(
                    f"{newest} is of a run with {name}={checkpoint.about[name]}, but this one has {name}={value}: "
                    "launch it as before"
                )
        return checkpoint

    def check_space(self, size: int) -> None:
        """Raise OSError unless the disk has room for ``keep + 1`` checkpoints of ``size`` bytes; some may exist."""
        keep, free = self.settings.keep, shutil.disk_usage(existing(self.path)).free
        if free < size * max(1, keep + 1 - len(self.checkpoints.all())):
            raise OSError(
                errno.ENOSPC,
                f"Expected room for {keep} + 1 checkpoints of about {size / 2**20:.1f} MiB at {self.path} (--keep), "
                f"but {free / 2**20:.1f} MiB are free",
            )

    def last_good(self) -> str:
        """Return the name of the newest checkpoint for messages."""
        return str(self.checkpoints.newest() or "none")

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write the digests and the flat record of the run."""
        write_record(self.path, metrics)

    def _lock_and_check(self) -> bool:
        """Lock the folder; return True if its run is finished."""
        path = self.path
        check_writable(path)
        self._lock.take()
        try:
            exists = (path / CONFIG).exists()
            if exists and not self.settings.resume:
                raise FileExistsError(
                    f"{path} already holds a run; use another --output, delete the folder, or continue the run with "
                    "--resume"
                )
            if exists:
                self._check_config()
            elif left := [name for name in RUN_FILES if (path / name).exists()]:
                raise FileExistsError(
                    f"{path} holds {', '.join(left)} of a run, but no {CONFIG}; use another --output, or delete the "
                    "folder"
                )
            finished = exists and (path / METRICS).exists()
            if finished:
                check_finished(path)
                self.release()
        except BaseException:
            self.release()
            raise
        return finished

    def _check_config(self) -> None:
        file = self.path / CONFIG
        try:
            saved = read_yaml(file)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} is not the configuration of a run: {error}") from error
        here = computed(self.settings)
        if lacking := sorted(here.keys() - saved.keys()):
            raise CheckpointError(
                f"{file} is not the configuration of a run of this version: it lacks {', '.join(lacking)}"
            )
        check_settings(self.path, {name: saved[name] for name in here}, here)


def plain(settings: RunSettings) -> dict[str, Any]:
    """Return the settings as plain values for YAML and JSON."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=str))
    return values


def computed(settings: RunSettings) -> dict[str, Any]:
    """Return the settings that affect the results of a run."""
    return {name: value for name, value in plain(settings).items() if name not in FREE_TO_CHANGE}


def images_of(data: ImageData) -> dict[str, Any]:
    """Return the number of images of both splits and a digest of their labels, as a checkpoint holds them."""
    content = b"".join(labels.numpy().tobytes() for labels in (data.train_labels, data.test_labels))
    images = {"train": len(data.train_labels), "test": len(data.test_labels)}
    return {"images": images, "labels": hashlib.sha256(content).hexdigest()}


def check_images(path: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise CheckpointError unless a checkpoint's data set has the same numbers of images and labels as this run's."""
    counts = [
        f"{split}: {now['images'][split]} images now, {number} then"
        for split, number in then["images"].items()
        if now["images"][split] != number
    ]
    if counts or then["labels"] != now["labels"]:
        difference = "; ".join(counts) or "the same number of images, but other labels or another order"
        raise CheckpointError(
            f"the data has changed since {path} was written: {difference}. Restore it, or use another --output"
        )


def existing(path: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    return path if path.is_dir() else existing(path.absolute().parent)


def check_folder(path: Path, flag: str) -> None:
    """Raise unless the path of this flag is a folder or nothing, in UTF-8: safetensors opens no other path."""
    if os.path.lexists(path) and not path.is_dir():
        kind = kind_of(path) if path.exists() else "a link to nothing"
        raise NotADirectoryError(f"Expected {flag} to be a folder, but {path} is {kind}")
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"Expected {flag} to be a path in UTF-8, but got {os.fsencode(path)!r}") from error


def check_writable(path: Path, flag: str = "--output") -> None:
    """Raise unless the path of this flag is a folder, new or old, that can be written into."""
    check_folder(path, flag)
    try:
        with tempfile.TemporaryFile(dir=existing(path)) as file:
            file.write(b"?")
    except OSError as error:
        raise OSError(error.errno, f"Expected to write into {flag} {path}, but: {error.strerror}") from error


@dataclass(frozen=True)
class RunContext:
    """The context of a run: its folder, settings, processes and data.

    Attributes:
        run: The folder.
        settings: The settings.
        accelerator: The processes.
        data: All images.
        split: The indices and labels of the images to train on and of the held-out images.
        images: The images to train on, with noisy labels.
        held_out: The held-out images.
        sampler: The batches of stage 1.
        replaced: The number of broken images that others of their class replace.
    """

    run: RunFolder[Any]
    settings: TrainSettings
    accelerator: Accelerator
    data: ImageData
    split: TrainingSplit
    images: MemoryImages | LazyImages
    held_out: MemoryImages | LazyImages
    sampler: MultiViewBatchSampler
    replaced: int = 0


def open_run(settings: TrainSettings, accelerator: Accelerator) -> RunFolder[TrainSettings]:
    """Return the folder of the run, after all checks that need no data."""
    return open_folder(settings, settings, settings.method, accelerator)


def open_folder(
    settings: Settings, training: TrainSettings, method: str, accelerator: Accelerator
) -> RunFolder[Settings]:
    """Return the folder of a program's run, which trains with the settings ``training``, after the same checks."""
    data = "".join(c if c.isalnum() else "-" for c in training.data).strip("-")
    # microseconds, because a loop of a shell starts several runs in one second
    name = f"{datetime.now():%Y%m%d-%H%M%S-%f}-{data}-{method}-seed{settings.seed}"
    run = RunFolder(settings.output or Path("runs") / broadcast_object_list([name])[0], settings)
    run.open()
    try:
        _check(run, training, accelerator)
    except BaseException:
        run.release()
        raise
    return run


def _check(run: RunFolder[Any], settings: TrainSettings, accelerator: Accelerator) -> None:
    """Raise for settings that cannot be used, before data are read."""
    check_shared_folder(run, accelerator)
    require_faiss()
    check_encoder_name(settings.encoder or DEFAULT_ENCODER)
    for plan, flag in ((settings.stage1(), "optimizer"), (settings.stage2(), "stage2_optimizer")):
        if plan is not None:
            check_optimizer(plan.optimizer, flag)
            try_optimizer(plan)  # raises for unsuitable arguments now, not after stage 1
    if settings.encoder_weights is not None:
        if not settings.encoder_weights.exists():
            raise FileNotFoundError(
                f"Expected --encoder_weights to be a file or a folder, but got {settings.encoder_weights}"
            )
        check_encoder_folder(settings.encoder_weights)
        read_weights(settings.encoder_weights)
    if settings.pretrained:
        announce_download(settings.encoder or DEFAULT_ENCODER)
    check_batch_sizes(settings, accelerator)
    if settings.sync_batch_norm and accelerator.device.type != "cuda":
        raise ValueError(f"Expected GPUs with --sync_batch_norm, as torch has it, but got {accelerator.device.type}")


def announce_download(encoder: str) -> None:
    """Print on the main process that timm has to download weights; without a network it tries for a minute."""
    if PartialState().is_main_process and not has_local_weights(encoder):
        say(f"no local weights of {encoder}: timm downloads them")


def check_shared_folder(run: RunFolder[Any], accelerator: Accelerator) -> None:
    """Raise ValueError unless all processes see the same folder; otherwise they would resume from different steps."""
    newest = run.checkpoints.newest() if run.settings.resume else None
    seen = gather_object([(run.finished, None if newest is None else newest.name)])
    if accelerator.num_processes > 1 and len(set(seen)) > 1:
        found = sorted({str(name) for _, name in seen})
        raise ValueError(f"Expected --output {run.path} to be one folder for all processes, but they see {found}")


def check_tracker(name: str | None) -> None:
    """Raise ImportError if the tracker is not installed."""
    names = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    if name is not None and name not in names:
        raise ImportError(
            f"Expected --tracker to be one that is installed ({', '.join(names) or 'none is'}), but got {name!r}"
        )


def open_images(settings: TrainSettings, accelerator: Accelerator, folder: Path) -> OpenedData:
    """Open the data set of the settings; images are decoded only to replace broken ones, listed in the folder."""
    with accelerator.main_process_first():  # one process downloads
        opened = open_labels(settings)
    print_data_summary(opened)
    if settings.broken_images == "replace":
        opened = replace_broken(opened, folder, write=accelerator.is_main_process)
    return opened


def open_labels(settings: TrainSettings) -> OpenedData:
    """Open the data set of the settings without decoding images; not a collective."""
    opened = open_data(
        settings.data,
        labels_are=settings.labels,
        image_size=settings.image_size,
        max_train=settings.max_train,
        max_test=settings.max_test,
        new_classes="all",
    )
    fraction = settings.train_fraction
    return opened if fraction == 1 else opened.with_train_fraction(fraction, settings.seed)


def print_data_summary(opened: OpenedData) -> None:
    """Print the three lines that say what was read, on the main process; the same lines are printed once."""
    if PartialState().is_main_process:
        _print_once("\n".join(opened.summary()))


@functools.cache
def _print_once(text: str) -> None:
    say(text)


def check_targets(settings: TrainSettings, split: TrainingSplit, scored: Tensor) -> None:
    """Raise ValueError for labels that the loss or the final scores cannot use; ``scored`` are those of the scores."""
    build_target(settings, split.levels)
    if settings.mixed and not bool((split.labels != 0).flatten(1).any(1).all() if split.labels.ndim > 1 else True):
        raise ValueError(
            "Expected a label in the set of every training image with --mixup or --cutmix, because a mix of two empty "
            "sets is no row's positive, but some are empty"
        )
    if settings.labels in ("sets", "numbers"):
        for part, labels in (("training", split.labels), (settings.scored, scored)):
            varies = (labels != labels[0]).reshape(len(labels), -1).any(0)
            if not bool(varies.all() if settings.labels == "numbers" else varies.any()):
                equal = "those of a column" if settings.labels == "numbers" and bool(varies.any()) else "all"
                raise ValueError(
                    f"Expected the {part} images to have {settings.labels} that differ, but {equal} are equal"
                )
    if settings.labels == "soft" and len(split.labels.argmax(1).unique()) == 1:
        raise ValueError(
            "Expected training images of at least two classes with the largest share, which the linear probe predicts, "
            "but one class has the largest share of all images"
        )


def build_context(settings: TrainSettings, run: RunFolder[TrainSettings], accelerator: Accelerator) -> RunContext:
    """Read the data and build the context; raise for invalid data, splits or batches."""
    opened = open_images(settings, accelerator, run.path)
    fractions = {"held_out": settings.held_out, "label_noise": settings.label_noise}
    split = split_training_set(opened.train.labels, **fractions, seed=settings.seed)
    check_targets(settings, split, split.held_out_labels if settings.scored == "held_out" else opened.test.labels)
    sampler = build_stage1_sampler(settings, split.labels, accelerator)  # its checks come before the slow decoding
    data: Any = opened.decode()
    images, held_out = split.training_images(data), split.held_out_images(data)
    return RunContext(run, settings, accelerator, data, split, images, held_out, sampler, opened.replaced)
