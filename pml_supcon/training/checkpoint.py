"""Checkpoints of a run: written under a temporary name and renamed, verified by digests, never unpickled.

    checkpoints/step-00001200/checkpoint.json       settings, step, and digests: of each file, of the history, of itself
                              weights.safetensors   models, the moving average, the queue
                              state.pt              optimizer, schedule, scaler, sampler, random states

``state.pt`` is read with ``weights_only=True``. A folder has its final name only once all files are on disk; a folder
that starts with a dot is incomplete and is removed. We do not use ``accelerator.save_state``, because it writes in
place and without digests, so that a kill during a save can leave a damaged checkpoint.
"""

import errno
import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pml_supcon._files import save_tensors
from pml_supcon.training.digests import DamageError, check_digest, digest_of_file, read_sealed, sealed

FORMAT = "pml_supcon checkpoint 2"
NAMES = "step-" + "[0-9]" * 8
ABOUT, WEIGHTS, STATE = "checkpoint.json", "weights.safetensors", "state.pt"
#: The fields of `checkpoint.json` besides the format.
FIELDS: dict[str, Any] = {"settings": dict, "files": dict, "stage": int, "step": int, "seconds": (int, float)}
FIELDS |= {"processes": int, "precision": str, "history": dict, "images": dict, "labels": str}
DIGESTS = {name: {"bytes", "sha256"} for name in (WEIGHTS, STATE)}


class CheckpointError(DamageError):
    """An error for a checkpoint that cannot be resumed; it names the difference."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        about: Plain values: stage, step, seconds and settings.
        weights: Tensors by name.
        state: Nested plain values and tensors.
    """

    about: dict[str, Any]
    weights: dict[str, Tensor]
    state: dict[str, Any]


class CheckpointFolder:
    """The checkpoints of one run in a folder, which is created with the first; the newest ``keep`` remain."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.keep = path, keep

    def newest(self) -> Path | None:
        """Return the newest checkpoint, or None."""
        return next(reversed(self.all()), None)

    def all(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return sorted(self.path.glob(NAMES))

    def write(self, step: int, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, then remove the oldest beyond ``keep``.

        Raises:
            OSError: If it cannot be written; earlier checkpoints are unchanged.
        """
        target = self.path / f"step-{step:08d}"
        partial = self.path / f".{target.name}.partial"
        try:
            self.clear()
            partial.mkdir(parents=True)
            weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.weights.items()}
            save_tensors(partial / WEIGHTS, weights)
            written = io.BytesIO()  # because torch's file writer hides the error of a full disk
            torch.save(checkpoint.state, written)
            (partial / STATE).write_bytes(written.getbuffer())
            digests = {name: digest_of_file(partial / name) for name in (WEIGHTS, STATE)}
            about = {"format": FORMAT, **checkpoint.about, "files": digests}
            (partial / ABOUT).write_text(json.dumps(sealed(about), indent=2) + "\n", encoding="utf-8")
            for name in (WEIGHTS, STATE, ABOUT):
                _to_disk(partial / name)
            if target.exists():  # the run resumed from an older checkpoint and reached this step again
                _remove(target)
            os.replace(partial, target)
            _to_disk(self.path)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(
                error.errno or errno.EIO,
                f"the checkpoint of step {step} could not be written ({error}); "
                f"last good checkpoint: {self.newest() or 'none'}",
            ) from error
        for old in self.all()[: -self.keep]:
            _remove(old)
        return target

    def clear(self) -> None:
        """Remove incomplete folders after a kill."""
        for left in self.path.glob(".step-*"):
            shutil.rmtree(left, ignore_errors=True)


def read_checkpoint(path: Path, expected: dict[str, Any]) -> Checkpoint:
    """Read and verify a checkpoint, which must have the expected settings.

    Raises:
        CheckpointError: If it is truncated, modified, not of this package, or has other settings.
    """
    about = _about(path)
    check_settings(path, about["settings"], expected)
    for name, digest in about["files"].items():
        check_digest(path / name, digest, advice(path))
    try:
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
        return Checkpoint(about, load_file(path / WEIGHTS), state)
    except Exception as error:  # the file matches its digest, but is not a checkpoint
        raise CheckpointError(f"{path} is not a checkpoint of this package: {str(error).splitlines()[0]}") from error


def check_settings(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise CheckpointError, with the differences, unless the stored settings equal the settings of this run."""
    differences = [
        f"{name}: {there.get(name)!r} in the checkpoint, {here.get(name)!r} in this run"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    if differences:
        raise CheckpointError(f"{path} is of a run with other settings: {'; '.join(differences)}")


def advice(path: Path) -> str:
    """Return the advice for a checkpoint that cannot be read."""
    return f"Remove {path} to resume from the previous checkpoint, or use another --output"


def _about(path: Path) -> dict[str, Any]:
    """Return the content of ``checkpoint.json``, or raise CheckpointError."""
    try:
        about = read_sealed(path / ABOUT, advice(path))
        if about["format"] != FORMAT:
            raise ValueError(f"expected the format {FORMAT!r}, but got {about['format']!r}")
        wrong = [name for name, kind in FIELDS.items() if not isinstance(about[name], kind)]
        if wrong or {name: set(digest) for name, digest in about["files"].items()} != DIGESTS:
            raise ValueError(f"unexpected {', '.join(wrong) or 'files'}")
        if path.name != f"step-{about['step']:08d}":
            raise ValueError(f"it is of step {about['step']}")
    except DamageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of this package: its {ABOUT} is invalid ({error})") from None
    return about


def _to_disk(path: Path) -> None:
    """Synchronise a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Rename a checkpoint to an incomplete one, then remove it, so that a kill leaves no damaged checkpoint."""
    gone = path.with_name(f".{path.name}.removed")
    os.replace(path, gone)
    shutil.rmtree(gone, ignore_errors=True)
