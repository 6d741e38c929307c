"""The folder of a run: its settings, checkpoints, metrics and pictures."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_model
from torch import nn

from pml_supcon.recipes.settings import TrainSettings

CONFIG, METRICS = "config.yaml", "metrics.json"


class RunFolder:
    """Where a run leaves its files; nothing of an earlier run is overwritten.

    Args:
        path: the folder; it may exist, but not hold a run.

    Raises:
        FileExistsError: the folder holds a run already.
        NotADirectoryError: the path is a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint: Path | None = None
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"Expected --output to be a folder, but {path} is a file")
        if (path / CONFIG).exists():
            raise FileExistsError(f"{path} already holds a run; name another --output, or remove it first")

    def create(self, settings: TrainSettings) -> None:
        """Make the folder and write the settings, which `--config` takes to repeat the run."""
        self.path.mkdir(parents=True, exist_ok=True)
        config = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}
        del config["output"]
        (self.path / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))

    def save_checkpoint(self, model: nn.Module, epoch: int) -> None:
        """Write the weights after an epoch, then remove the checkpoint before it."""
        target = self.path / "checkpoints" / f"epoch-{epoch:04d}.safetensors"
        target.parent.mkdir(exist_ok=True)
        save_model(model, str(target.with_suffix(".partial")))
        os.replace(target.with_suffix(".partial"), target)
        if self.checkpoint is not None:
            self.checkpoint.unlink()
        self.checkpoint = target

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write the flat record of the run."""
        (self.path / METRICS).write_text(json.dumps(metrics, indent=2) + "\n")


def default_path(settings: TrainSettings) -> Path:
    """A new name under `runs/`, from the data, the method and the time."""
    data = "".join(c if c.isalnum() else "-" for c in settings.data).strip("-")
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{data}-{settings.method}-seed{settings.seed}"


def environment() -> dict[str, Any]:
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
    }


def commit() -> str | None:
    """The commit of the checkout that this file is in, with "+" where files differ from it; None outside one."""
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
