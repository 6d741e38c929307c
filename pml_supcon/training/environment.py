"""The environment of a run: versions, commit, machine, peak memory."""

import functools
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


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
