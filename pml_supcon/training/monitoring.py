"""Monitoring of a run: the history file and tracker, statistics of steps, alignment and uniformity, timers."""

import errno
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from pml_supcon._console import note
from pml_supcon._files import write_atomic
from pml_supcon.training.stage import Stage

Row = dict[str, Any]


class TrackerError(ValueError):
    """An error for a tracker that cannot start."""


class History:
    """The file ``history.jsonl`` of a run, and Accelerate's tracker. Only the main process writes.

    A row has ``stage``, ``epoch`` (from 1) and ``step`` (from 1, over the whole run). Rows of steps have ``loss``,
    ``learning_rate`` and ``gradient_norm``. Rows of epochs have throughput, alignment, uniformity and the metrics of
    callbacks.
    """

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self.path, self.accelerator = path, accelerator
        self._bytes, self._sha256 = 0, hashlib.sha256()  # of what was written

    def cut(self, size: int) -> None:
        """Remove all but the first bytes: the rows before the checkpoint from which a resumed run continues."""
        if not self.accelerator.is_main_process or not self.path.exists():
            return
        with self.path.open("rb") as file:
            kept = file.read(size)
        write_atomic(self.path, kept)
        self._bytes, self._sha256 = len(kept), hashlib.sha256(kept)

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows to the file and log them to the tracker."""
        if not self.accelerator.is_main_process:
            return
        written = "".join(json.dumps(row) + "\n" for row in rows).encode()
        with self.path.open("ab") as file:
            file.write(written)
        self._bytes += len(written)
        self._sha256.update(written)
        for row in rows:
            values = {f"stage{row['stage']}/{key}": row[key] for key in row if key not in ("stage", "epoch", "step")}
            self.log({**values, "epoch": row["epoch"]}, row["step"])

    def log(self, values: Row, step: int) -> None:
        """Log values to the tracker; a tracker that fails is a note, and is no longer used."""
        try:
            self.accelerator.log(values, step=step)
        except Exception as error:  # of any tracker: training goes on
            note(f"the tracker failed at step {step} and is no longer used: {error!r}")
            self.accelerator.trackers.clear()

    def finish(self) -> None:
        """Finish the trackers; one that fails is a note, because the run is over."""
        for tracker in self.accelerator.trackers:
            try:
                tracker.finish()
            except Exception as error:  # of any tracker
                note(f"the tracker did not finish: {error!r}")

    def to_disk(self) -> dict[str, Any]:
        """Synchronise the file to disk, and return the digest of what was written to it, for a checkpoint."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}

    def rows(self) -> list[Row]:
        """Return all rows.

        Raises:
            OSError: If another program has changed the file.
        """
        content = self.path.read_bytes() if self.path.exists() else b""
        if hashlib.sha256(content).digest() != self._sha256.digest():
            raise OSError(errno.EIO, f"{self.path} was changed during the run: repeat it with --resume")
        return [json.loads(line) for line in content.splitlines()]

    def losses(self, stage: int) -> list[float]:
        """Return the loss of every step of a stage."""
        return [row["loss"] for row in self.rows() if row["stage"] == stage and "loss" in row]

    def last_epoch(self, stage: int) -> Row:
        """Return the row of the last epoch of a stage, or an empty row."""
        rows = [row for row in self.rows() if row["stage"] == stage and "images_per_second" in row]
        return rows[-1] if rows else {}


FLUSH_EVERY = 50  # steps


class StepLogger:
    """A buffer of losses, gradient norms and learning rates, averaged over processes and written to the history.

    Values stay on the device until ``flush``, so that a step does not wait for the GPU. ``last`` is the loss of the
    last flushed step.
    """

    def __init__(self, stage: Stage, history: History | None, accelerator: Accelerator) -> None:
        self.stage, self.history, self.accelerator = stage, history, accelerator
        self.last = math.nan
        self._values: list[Tensor] = []
        self._rates: list[float] = []

    def add(self, loss: Tensor, norm: Tensor, rate: float) -> None:
        """Buffer the values of a step."""
        self._values.append(torch.stack([loss.detach().float(), norm.detach().float()]))
        self._rates.append(rate)

    @property
    def due(self) -> bool:
        """True if the buffer should be flushed."""
        return len(self._values) >= FLUSH_EVERY

    def flush(self, step: int) -> None:
        """Write the buffer to the history; its last entry belongs to ``step``.

        Raises:
            FloatingPointError: If a loss or gradient norm is infinite or NaN; raised on all processes.
        """
        if not self._values:
            return
        values = self.accelerator.reduce(torch.stack(self._values), reduction="mean").tolist()
        rows: list[Row] = []
        for at, (loss, norm), rate in zip(range(step - len(values) + 1, step + 1), values, self._rates, strict=True):
            row: Row = {"stage": self.stage.number, "epoch": self.stage.epoch_of(at), "step": at, "loss": loss}
            scaled = self.accelerator.scaler is not None  # the gradient scaler skips steps that overflow
            if not math.isfinite(loss) or not (math.isfinite(norm) or scaled):
                self._write(rows)
                quantity, value = ("gradient norm", norm) if math.isfinite(loss) else ("loss", loss)
                raise FloatingPointError(f"the {quantity} became {value} at step {at} (epoch {row['epoch']})")
            row["learning_rate"] = rate
            if math.isfinite(norm):
                row["gradient_norm"] = norm
            rows.append(row)
        self._write(rows)
        self.last, self._values, self._rates = rows[-1]["loss"], [], []

    def _write(self, rows: Sequence[Row]) -> None:
        if self.history is not None:
            self.history.add(rows)


ROWS = 1024  # maximum number of embeddings for alignment and uniformity


def alignment(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Return the mean squared distance of normalised rows with equal labels (Wang & Isola, ICML 2020); 0 is best.

    Args:
        embeddings: Embeddings ``(N, D)``, of any norm.
        labels: Labels ``(N,)``.

    Returns:
        A scalar in [0, 4]; NaN if no two rows share a label.
    """
    rows = F.normalize(embeddings.float())
    same = (labels[:, None] == labels).triu(diagonal=1)  # (N, N), each pair once
    distances = (2 - 2 * (rows @ rows.T)).clamp(min=0)  # ||a - b||^2 = 2 - 2 ab of unit rows
    return torch.where(same, distances, 0).sum() / same.sum()


def uniformity(embeddings: Tensor) -> Tensor:
    """Return the log of the mean of ``exp(-2 d^2)`` over pairs of normalised rows (Wang & Isola); lower is better.

    Args:
        embeddings: Embeddings ``(N, D)``, of any norm, N >= 2.

    Returns:
        A scalar in [-8, 0]; NaN for a single row.
    """
    rows = F.normalize(embeddings.float())
    potentials = (4 * (rows @ rows.T) - 4).clamp(max=0)  # -2 d^2 of unit rows, (N, N)
    others = torch.ones_like(potentials, dtype=torch.bool).triu(diagonal=1)
    return potentials[others].logsumexp(0) - others.sum().log()


def alignment_and_uniformity(embeddings: Tensor | None, labels: Tensor | None) -> dict[str, float]:
    """Return alignment and uniformity of at most ``ROWS`` embeddings of ``(B, V, D)``, labels ``(B,)``; omit NaN.

    Without labels, return the uniformity alone.
    """
    if embeddings is None:
        return {}
    samples = max(1, ROWS // embeddings.shape[1])
    rows = embeddings.detach()[:samples].flatten(0, 1)
    metrics = {}
    if labels is not None:
        metrics["alignment"] = float(alignment(rows, labels[:samples].repeat_interleave(embeddings.shape[1])))
    metrics["uniformity"] = float(uniformity(rows))
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


class EpochTimer:
    """A timer of an epoch and of its waiting time for data."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.waited = 0.0

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches; count the time to fetch each as waiting time."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - asked
            yield batch

    def throughput(self, images: int) -> dict[str, float]:
        """Return images per second since the start, and the fraction of time spent waiting for data."""
        seconds = time.perf_counter() - self.started
        return {"images_per_second": images / seconds, "data_wait": self.waited / seconds}
