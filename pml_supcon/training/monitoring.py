"""Monitoring of a run: the history file and tracker, statistics of steps, alignment and uniformity, timers."""

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

from pml_supcon.training.stage import Stage

Row = dict[str, Any]


class History:
    """The file `history.jsonl` of a run, and Accelerate's tracker; does nothing but on the main process.

    A row has `stage`, `epoch` (from 1) and `step` (from 1, over the whole run). Rows of steps have `loss`,
    `learning_rate` and `gradient_norm`, rows of epochs what `watch.py` saw.

    Args:
        path: the file.
        accelerator: has the tracker.
    """

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self.path, self.accelerator = path, accelerator

    def cut(self, step: int) -> None:
        """Drop what came after a step: a run goes on from there."""
        if not self.accelerator.is_main_process or not self.path.exists():
            return
        kept = [row for row in self.rows() if row["step"] <= step]
        aside = self.path.with_suffix(".partial")
        aside.write_text("".join(json.dumps(row) + "\n" for row in kept))
        aside.replace(self.path)

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows, and tell the tracker."""
        if not self.accelerator.is_main_process:
            return
        with self.path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        for row in rows:
            told = {f"stage{row['stage']}/{name}": row[name] for name in row if name not in ("stage", "epoch", "step")}
            self.accelerator.log({**told, "epoch": row["epoch"]}, step=row["step"])

    def to_disk(self) -> None:
        """Wait until all rows are on the disk."""
        if self.path.exists():
            with self.path.open() as file:
                os.fsync(file.fileno())

    def rows(self) -> list[Row]:
        """All rows; a last line that was cut off by a kill is none."""
        rows = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def losses(self, stage: int) -> list[float]:
        """The loss of every step of a stage."""
        return [row["loss"] for row in self.rows() if row["stage"] == stage and "loss" in row]

    def last_epoch(self, stage: int) -> Row:
        """What was seen of the last epoch of a stage; empty where nothing was."""
        rows = [row for row in self.rows() if row["stage"] == stage and "images_per_second" in row]
        return rows[-1] if rows else {}


FLUSH_EVERY = 50  # steps


class StepLogger:
    """Losses, gradient norms and learning rates that are not in the history yet.

    Args:
        stage: whose steps they are.
        history: where they go.
        accelerator: takes the mean over processes.

    Attributes:
        last: the loss of the last step that was looked at.
    """

    def __init__(self, stage: Stage, history: History | None, accelerator: Accelerator) -> None:
        self.stage, self.history, self.accelerator = stage, history, accelerator
        self.last = math.nan
        self._seen: list[Tensor] = []
        self._rates: list[float] = []

    def add(self, loss: Tensor, norm: Tensor, rate: float) -> None:
        """Take note of a step."""
        self._seen.append(torch.stack([loss.detach().float(), norm.detach().float()]))
        self._rates.append(rate)

    @property
    def due(self) -> bool:
        """Whether there are many."""
        return len(self._seen) >= FLUSH_EVERY

    def flush(self, step: int) -> None:
        """Write them into the history, the last being that of `step`.

        Raises:
            FloatingPointError: a loss is infinite or NaN, on all processes alike.
        """
        if not self._seen:
            return
        values = self.accelerator.reduce(torch.stack(self._seen), reduction="mean").tolist()
        rows: list[Row] = []
        for at, (loss, norm), rate in zip(range(step - len(values) + 1, step + 1), values, self._rates, strict=True):
            row: Row = {"stage": self.stage.number, "epoch": self.stage.epoch_of(at), "step": at, "loss": loss}
            scaled = self.accelerator.scaler is not None  # then a step that overflows is left out
            if not math.isfinite(loss) or not (math.isfinite(norm) or scaled):
                self._write(rows)
                what, value = ("gradient norm", norm) if math.isfinite(loss) else ("loss", loss)
                raise FloatingPointError(f"the {what} became {value} at step {at} (epoch {row['epoch']})")
            row["learning_rate"] = rate
            if math.isfinite(norm):
                row["gradient_norm"] = norm
            rows.append(row)
        self._write(rows)
        self.last, self._seen, self._rates = rows[-1]["loss"], [], []

    def _write(self, rows: Sequence[Row]) -> None:
        if self.history is not None:
            self.history.add(rows)


ROWS = 1024  # of a batch's embeddings that are compared


def alignment(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Mean squared distance of unit rows with one label (Wang & Isola, ICML 2020): 0 where they coincide.

    Args:
        embeddings: `(N, D)`, of any length.
        labels: `(N,)`.

    Returns:
        A scalar in [0, 4]; NaN where no two rows share a label.
    """
    rows = F.normalize(embeddings.float())
    same = (labels[:, None] == labels).triu(diagonal=1)
    distances = (2 - 2 * (rows @ rows.T)).clamp(min=0)
    return torch.where(same, distances, 0).sum() / same.sum()


def uniformity(embeddings: Tensor) -> Tensor:
    """Logarithm of the mean of `exp(-2 d^2)` over pairs of unit rows (Wang & Isola): lower is more even.

    Args:
        embeddings: `(N, D)`, of any length, N >= 2.

    Returns:
        A scalar in [-8, 0]; NaN for a single row.
    """
    rows = F.normalize(embeddings.float())
    potentials = (4 * (rows @ rows.T) - 4).clamp(max=0)
    others = torch.ones_like(potentials, dtype=torch.bool).triu(diagonal=1)
    return potentials[others].logsumexp(0) - others.sum().log()


def alignment_and_uniformity(embeddings: Tensor | None, labels: Tensor) -> dict[str, float]:
    """Alignment and uniformity of (some of) a batch's embeddings `(B, V, D)`, labels `(B,)`; those that exist."""
    if embeddings is None:
        return {}
    samples = max(1, ROWS // embeddings.shape[1])
    rows = embeddings.detach()[:samples].flatten(0, 1)
    names = labels[:samples].repeat_interleave(embeddings.shape[1])
    seen = {"alignment": float(alignment(rows, names)), "uniformity": float(uniformity(rows))}
    return {name: value for name, value in seen.items() if value == value}


class EpochTimer:
    """Times an epoch, and how long its loop waited for data."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.waited = 0.0

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The same batches; the time that each takes to come counts as waited."""
        coming = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(coming)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - asked
            yield batch

    def throughput(self, images: int) -> dict[str, float]:
        """Images a second since the start, and the share of the time that was waited."""
        seconds = time.perf_counter() - self.started
        return {"images_per_second": images / seconds, "data_wait": self.waited / seconds}
