"""The folder of a run: its settings, checkpoints, metrics and pictures."""

import errno
import fcntl
import functools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml
from accelerate import Accelerator

from pml_supcon.training.checkpoints import Checkpoint, CheckpointError, CheckpointFolder, read_checkpoint
from pml_supcon.training.config import FREE_TO_CHANGE, TrainSettings

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
            replace_text(self.path / CONFIG, yaml.safe_dump(config, sort_keys=False))
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
        replace_text(self.path / METRICS, json.dumps(metrics, indent=2) + "\n")

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


def replace_text(path: Path, text: str) -> None:
    """Write a file aside and move it into place: a kill leaves the old one or the new one."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text)
    os.replace(aside, path)


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


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure depends on besides the settings: versions, commit, machine, peak memory of this process."""
    packages = ("pml-supcon", "torch", "torchvision", "timm", "pytorch-metric-learning", "accelerate")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        **{f"version/{package}": version(package) for package in packages},
        "version/python": platform.python_version(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "cpus": os.cpu_count(),
        "peak_memory_mb": round(peak / 2**20),
        **on_device(device),
    }


def on_device(device: torch.device) -> dict[str, Any]:
    """The device, and the peak of what this process has held on it."""
    if device.type != "cuda":
        return {"device": device.type}
    peak = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return {"device": torch.cuda.get_device_name(device), "peak_device_memory_mb": peak}


@functools.cache
def commit() -> str | None:
    """The commit of the checkout that this file is in, with "+" where files differ from it; None outside one.

    Programs ask when they start: files may change while they run.
    """
    here = Path(__file__).resolve()
    try:  # an installed package may be in a folder of another repository, which does not track it
        git("ls-files", "--error-unmatch", here.name, folder=here.parent)
        return git("describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+", folder=here.parent)
    except (OSError, subprocess.CalledProcessError):
        return None


def git(*arguments: str, folder: Path) -> str:
    """What git answers in a folder."""
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
