"""Checkpoints of a run: written beside and renamed, checked when read, never unpickled.

    checkpoints/step-00001200/checkpoint.json       what it is, with a digest of each file
                              weights.safetensors   models, the moving average, the queue
                              state.pt              optimizer, schedule, scaler, sampler, random states

`state.pt` is read with `weights_only=True`. A folder bears its name only when all of it is on the disk; one that starts
with a dot is half-written or half-removed, and is cleared away.
"""

import errno
import hashlib
import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = "pml_supcon checkpoint 1"
NAMES = "step-" + "[0-9]" * 8
ABOUT, WEIGHTS, STATE = "checkpoint.json", "weights.safetensors", "state.pt"
#: What `checkpoint.json` has to say, besides the format.
FIELDS: dict[str, Any] = {"settings": dict, "files": dict, "stage": int, "step": int, "seconds": (int, float)}
FIELDS |= {"processes": int, "precision": str}
DIGESTS = {name: {"bytes", "sha256"} for name in (WEIGHTS, STATE)}


class CheckpointError(ValueError):
    """A checkpoint that cannot be gone on from: says what differs."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        about: plain values: where the run stood, and of which settings it is.
        weights: tensors by name.
        state: plain values and tensors, nested.
    """

    about: dict[str, Any]
    weights: dict[str, Tensor]
    state: dict[str, Any]


class CheckpointFolder:
    """The checkpoints of one run, by step.

    Args:
        path: their folder; made when the first is written.
        keep: so many of the newest stay.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.keep = path, keep

    def newest(self) -> Path | None:
        """The last one written, or None."""
        found = self.all()
        return found[-1] if found else None

    def all(self) -> list[Path]:
        """Those that are whole, oldest first."""
        return sorted(self.path.glob(NAMES))

    def write(self, step: int, checkpoint: Checkpoint) -> Path:
        """Write one, then remove the oldest beyond `keep`.

        Raises:
            OSError: it could not be written; those before it are as they were.
        """
        target = self.path / f"step-{step:08d}"
        partial = self.path / f".{target.name}.partial"
        try:
            self.clear()
            partial.mkdir(parents=True)
            weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.weights.items()}
            save_file(weights, partial / WEIGHTS)
            written = io.BytesIO()  # torch's own writer hides what the disk says
            torch.save(checkpoint.state, written)
            (partial / STATE).write_bytes(written.getbuffer())
            digests = {name: _digest(partial / name) for name in (WEIGHTS, STATE)}
            about = {"format": FORMAT, **checkpoint.about, "files": digests}
            (partial / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
            for name in (WEIGHTS, STATE, ABOUT):
                _to_disk(partial / name)
            if target.exists():  # the same step again, after a run went on from an older one
                _remove(target)
            os.replace(partial, target)
            _to_disk(self.path)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(
                getattr(error, "errno", None) or errno.EIO,
                f"the checkpoint of step {step} could not be written ({error}); "
                f"last good checkpoint: {self.newest() or 'none'}",
            ) from error
        for old in self.all()[: -self.keep]:
            _remove(old)
        return target

    def clear(self) -> None:
        """Remove what was half-written or half-removed when the run was killed."""
        for left in self.path.glob(".step-*"):
            shutil.rmtree(left, ignore_errors=True)


def read_checkpoint(path: Path, expected: dict[str, Any]) -> Checkpoint:
    """Read one.

    Args:
        path: its folder.
        expected: settings that its `about["settings"]` must equal.

    Raises:
        CheckpointError: it is cut short or changed, foreign, or of other settings; names what differs.
    """
    about = _about(path)
    differences = [
        f"{name} is {about['settings'].get(name)!r} there and {expected.get(name)!r} here"
        for name in sorted({*about["settings"], *expected})
        if about["settings"].get(name) != expected.get(name)
    ]
    if differences:
        raise CheckpointError(f"{path} is of a run with other settings: {'; '.join(differences)}")
    for name, digest in about["files"].items():
        file = path / name
        if not file.is_file() or _digest(file) != digest:
            came = f"{file.stat().st_size} bytes with another digest" if file.is_file() else "no file"
            raise CheckpointError(
                f"{file} is not what was written: expected {digest['bytes']} bytes, but got {came}. Remove {path} to "
                "go on from the checkpoint before it"
            )
    try:
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
        return Checkpoint(about, load_file(path / WEIGHTS), state)
    except Exception as error:  # a file that matches its digest, but that another program wrote
        raise CheckpointError(f"{path} is no checkpoint of this package: {str(error).splitlines()[0]}") from error


def _about(path: Path) -> dict[str, Any]:
    """The description of a checkpoint, if it is one."""
    try:
        about = json.loads((path / ABOUT).read_text())
        if about["format"] != FORMAT:
            raise ValueError(f"expected the format {FORMAT!r}, but got {about['format']!r}")
        wrong = [name for name, kind in FIELDS.items() if not isinstance(about[name], kind)]
        if wrong or {name: set(digest) for name, digest in about["files"].items()} != DIGESTS:
            raise ValueError(f"unexpected {', '.join(wrong) or 'files'}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is no checkpoint of this package: its {ABOUT} is not that of one ({error})"
        ) from None
    described: dict[str, Any] = about
    return described


def _digest(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Remove a checkpoint; killed half-way, it is none any more."""
    gone = path.with_name(f".{path.name}.removed")
    os.replace(path, gone)
    shutil.rmtree(gone, ignore_errors=True)
