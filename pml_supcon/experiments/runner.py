"""Run the trainings and evaluations of an experiment one after the other, and skip finished ones."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from pml_supcon.experiments.analysis import evaluate_run, scores_in
from pml_supcon.experiments.costs import milliseconds_of
from pml_supcon.experiments.experiment import TOP1, Experiment, Training
from pml_supcon.experiments.record import Outcome, record_of
from pml_supcon.experiments.scales import Scale
from pml_supcon.experiments.tuning import Choice, candidates, choose, settings_of
from pml_supcon.training.config import TrainSettings
from pml_supcon.training.digests import METRICS, read_own, write_own
from pml_supcon.training.environment import environment
from pml_supcon.training.processes import on_main
from pml_supcon.training.run import computed, open_run
from pml_supcon.training.train import load_run, train_and_score

DIVERGED = "diverged.json"
RECORDED = ("linear_probe/", "retrieval/", "train/", "miner/", "seconds/")
ORIGIN = ("commit", "date", "device", "cpus", "processes", "precision", "version/")


def run_experiment(
    experiment: Experiment, scale: Scale, seeds: Sequence[int], runner: "TrainingRunner", log: Callable[[str], None]
) -> dict[str, Any]:
    """Run the missing parts of an experiment and return its record. Call it on all processes."""
    runner.seconds.clear()
    outcomes: dict[str, Outcome] = {}
    for training in experiment.trainings:
        # 1. The learning rate with the best accuracy on held-out training images.
        tried = {rate: runner.run(settings)[TOP1] for rate, settings in candidates(training, scale).items()}
        choice = choose(tried, training, scale)
        if tried:
            scores = ", ".join(f"{rate:g}: {score:.4f}" for rate, score in tried.items())
            best = f"learning rate {choice.learning_rate:g} on held-out images"
            log(f"{experiment.name}: {training.name}, {best} ({scores})")
        # 2. Every seed on all training images, scored on the test split.
        outcome = outcomes[training.name] = Outcome(choice)
        for seed in seeds:
            started, settings = time.perf_counter(), settings_for(training, scale, choice, seed)
            run_seed(experiment, training, settings, runner, outcome)
            result = outcome.diverged.get(seed) or f"top-1 {outcome.scores[seed][TOP1]:.4f}"
            log(
                f"{experiment.name}: {training.name}, learning rate {settings.learning_rate:g}, seed {seed}: {result} "
                f"({time.perf_counter() - started:.0f} s)"
            )
    # 3. The time of each loss with its miner, measured on one batch.
    for seed in seeds if experiment.timed else ():
        timed = {
            each.name: settings_for(each, scale, outcomes[each.name].choice, seed) for each in experiment.trainings
        }
        for name, milliseconds in milliseconds_of(timed, runner.accelerator, seed=seed).items():
            outcomes[name].scores[seed]["loss/milliseconds"] = milliseconds
    return record_of(experiment, scale, seeds, outcomes, runner.seconds, runner.accelerator.device)


def settings_for(training: Training, scale: Scale, choice: Choice, seed: int) -> TrainSettings:
    """Return the settings of a training that is scored on the test split."""
    own = {"learning_rate": choice.learning_rate * training.factor, "seed": seed, "pictures": False}
    return settings_of(scale.settings, {**training.settings, **own})


def run_seed(
    experiment: Experiment, training: Training, settings: TrainSettings, runner: "TrainingRunner", outcome: Outcome
) -> None:
    """Train and evaluate with one seed, and add the results to `outcome`."""
    record, path, seed = runner.run(settings), runner.path_of(settings), settings.seed
    outcome.origins[seed] = {name: value for name, value in record.items() if name.startswith(ORIGIN)}
    outcome.scores[seed] = {name: value for name, value in record.items() if name.startswith(RECORDED)}
    if "diverged" in record:
        outcome.diverged[seed] = record["diverged"]
    elif experiment.evaluated is None or training.name in experiment.evaluated:
        for options in experiment.evaluations:
            evaluation = evaluate_run(path, settings, options, runner.accelerator)
            outcome.scores[seed] |= scores_in(evaluation["sections"], options)
            if not evaluation["sections"]:
                outcome.not_scored.setdefault(seed, []).extend(evaluation["notes"])
            seconds = sum(evaluation["seconds"].values())
            runner.seconds[f"{path.name}: {', '.join(map(str, options.values()))}"] = seconds


class TrainingRunner:
    """A runner of trainings that share one folder. Call its methods on all processes.

    Args:
        folder: The folder of all runs. Each run has a subfolder with the name of its method, its seed and a digest of
            its settings.
        accelerator: The processes.

    Attributes:
        seconds: The seconds of each run and evaluation of the current experiment, also of runs that finished earlier.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder, self.accelerator = folder, accelerator
        self.seconds: dict[str, float] = {}

    def run(self, settings: TrainSettings) -> dict[str, Any]:
        """Train unless the run is finished, resume it if it was interrupted, and return its record.

        A run that diverged is not repeated: its record has the error message as `diverged`, and the accuracy of chance.

        Raises:
            ValueError, TypeError, OSError: If settings, data or folder are not usable, or a file of the run is damaged.
            Stopped: If a signal arrives; a checkpoint is written first.
        """
        path, started = self.path_of(settings), time.perf_counter()
        diverged = path / DIVERGED
        if not broadcast_object_list([diverged.exists()])[0]:  # the main process decides
            run = open_run(replace(self.resolved(settings), output=path, resume=True), self.accelerator)
            if not run.finished:
                prepared = load_run(run, self.accelerator)
                try:
                    train_and_score(prepared, started)
                except FloatingPointError as error:
                    self._record_divergence(diverged, str(error), 1 / prepared.context.data.num_classes, started)
                self.accelerator.free_memory()
        if self.accelerator.is_main_process:
            shutil.rmtree(path / "checkpoints", ignore_errors=True)
        self.accelerator.wait_for_everyone()
        record = on_main(lambda: read_record(path))
        self.seconds[path.name] = record["seconds/total"]
        return record

    def path_of(self, settings: TrainSettings) -> Path:
        """Return the folder of a run; experiments that need the same run share it."""
        digest = hashlib.sha256(json.dumps(computed(self.resolved(settings)), sort_keys=True).encode()).hexdigest()
        return self.folder / f"{settings.method}-seed{settings.seed}-{digest[:12]}"

    def resolved(self, settings: TrainSettings) -> TrainSettings:
        """Return settings with the launcher's precision: a run in another precision is another run."""
        precision = self.accelerator.mixed_precision
        named = settings.mixed_precision or precision == "no"
        return settings if named else replace(settings, mixed_precision=precision)

    def _record_divergence(self, file: Path, message: str, chance: float, started: float) -> None:
        if self.accelerator.is_main_process:
            record = {"diverged": message, TOP1: chance, "seconds/total": round(time.perf_counter() - started, 1)}
            record |= {"processes": self.accelerator.num_processes, "precision": self.accelerator.mixed_precision}
            record |= environment(self.accelerator.device)
            write_own(file, record)


def read_record(run: Path) -> dict[str, Any]:
    """Return the record of a run that diverged or is finished; its files were checked when it was opened."""
    if (run / DIVERGED).exists():
        return read_own(run / DIVERGED, "Remove it to train again")
    record: dict[str, Any] = json.loads((run / METRICS).read_text(encoding="utf-8"))
    return record
