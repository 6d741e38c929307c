"""What a run has seen: a line of JSON for every step and for every epoch, and a tracker that is told too."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

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
