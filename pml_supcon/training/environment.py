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
    """Return versions, commit, date, machine, and the peak memory of this process, for the record of a run."""
    packages = ("pml-supcon", "torch", "torchvision", "timm", "pytorch-metric-learning", "accelerate")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    described = {
        **{f"version/{package}": version(package) for package in packages},
        "version/python": platform.python_version(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "cpus": os.cpu_count(),
        "peak_memory_mb": round(peak / 2**20),
        "device": device.type,
    }
    if device.type == "cuda":
        described["device"] = torch.cuda.get_device_name(device)
        described["peak_device_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return described


@functools.cache
def commit() -> str | None:
    """Return the commit of this checkout, with "+" if files differ from it; None outside a checkout.

    Programs call it at their start, because files may change during the run. The result is cached.
    """
    here = Path(__file__).resolve()
    try:  # an installed package may be in a folder of another repository, which does not track it
        git("ls-files", "--error-unmatch", here.name, folder=here.parent)
        return git("describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+", folder=here.parent)
    except (OSError, subprocess.CalledProcessError):
        return None


def git(*arguments: str, folder: Path) -> str:
    """Return the output of a git command in a folder."""
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
