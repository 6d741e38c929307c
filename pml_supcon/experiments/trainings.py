"""Runs of `train.py`, one after the other in the same processes; what is finished is not repeated."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from pml_supcon.experiments.experiment import TOP1
from pml_supcon.training.app import complete, prepare
from pml_supcon.training.config import TrainSettings
from pml_supcon.training.config.fitting import DEFAULTS, fitted
from pml_supcon.training.job import open_run
from pml_supcon.training.run_folder import computed, environment, replace_text

DIVERGED = "diverged.json"


def settings_of(common: Mapping[str, Any], own: Mapping[str, Any]) -> TrainSettings:
    """The settings of a training: what is common to all, where its method has it, under its own.

    Raises:
        ValueError: they contradict each other; TypeError: there is no such setting.
    """
    values, _ = fitted({**DEFAULTS, **common, **own}, set(own))
    return TrainSettings(**values)


class Trainings:
    """The folder with all runs. All processes call it alike.

    Args:
        folder: of the runs, each in a folder of its own, named after the method and a digest of all its settings.
        accelerator: the processes.

    Attributes:
        seconds: what each run that was asked for has taken, and each evaluation of it, whenever that was.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder, self.accelerator = folder, accelerator
        self.seconds: dict[str, float] = {}

    def path_of(self, settings: TrainSettings) -> Path:
        """Where a run is, whichever experiment asked for it."""
        digest = hashlib.sha256(json.dumps(computed(self.resolved(settings)), sort_keys=True).encode()).hexdigest()
        return self.folder / f"{settings.method}-seed{settings.seed}-{digest[:12]}"

    def resolved(self, settings: TrainSettings) -> TrainSettings:
        """Settings with the precision that the launcher chose: a run in another one is another run."""
        chosen = self.accelerator.mixed_precision
        return settings if settings.mixed_precision or chosen == "no" else replace(settings, mixed_precision=chosen)

    def record(self, settings: TrainSettings) -> dict[str, Any]:
        """The record of a run, which is trained where it is missing, or goes on where it was stopped.

        A run that diverged is not tried again: its record has `diverged`, which says how, and the accuracy of chance.

        Raises:
            ValueError, TypeError, OSError: what is wrong with settings, data or folder.
            Stopped: a signal came; a checkpoint was written first.
        """
        path, started = self.path_of(settings), time.perf_counter()
        diverged = path / DIVERGED
        if not self._seen_by_main(diverged):
            run = open_run(replace(self.resolved(settings), output=path, resume=True), self.accelerator)
            if not run.finished:
                prepared = prepare(run, self.accelerator)
                try:
                    complete(prepared, started)
                except FloatingPointError as error:
                    self._note(diverged, str(error), 1 / prepared.job.data.num_classes, started)
                self.accelerator.free_memory()
        if self.accelerator.is_main_process:
            shutil.rmtree(path / "checkpoints", ignore_errors=True)  # it is over
        self.accelerator.wait_for_everyone()
        found = self._read(path)
        self.seconds[path.name] = found["seconds/total"]
        return found

    def _seen_by_main(self, file: Path) -> bool:
        return bool(broadcast_object_list([file.exists()])[0])

    def _note(self, file: Path, message: str, chance: float, started: float) -> None:
        if self.accelerator.is_main_process:
            about = {"diverged": message, TOP1: chance, "seconds/total": round(time.perf_counter() - started, 1)}
            about |= {"processes": self.accelerator.num_processes, "precision": self.accelerator.mixed_precision}
            about |= environment(self.accelerator.device)
            replace_text(file, json.dumps(about, indent=2) + "\n")

    def _read(self, path: Path) -> dict[str, Any]:
        found = None
        if self.accelerator.is_main_process:
            name = DIVERGED if (path / DIVERGED).exists() else "metrics.json"
            found = json.loads((path / name).read_text())
        read: dict[str, Any] = broadcast_object_list([found])[0]
        return read
