"""What is kept of a run while it goes: checkpoints, and the k-NN accuracy of held-out images in between."""

import time

from accelerate import Accelerator

from pml_supcon.recipes.evaluation import knn_accuracy
from pml_supcon.recipes.history import Row
from pml_supcon.recipes.job import Job
from pml_supcon.recipes.run_folder import computed
from pml_supcon.recipes.run_state import capture
from pml_supcon.recipes.settings import TrainSettings
from pml_supcon.recipes.stage import Stage


class RunKeeper:
    """Writes a run's checkpoints and looks at its held-out images.

    Args:
        job: the run.
        settings: its settings.
        accelerator: the processes.
        started: when it started (`time.perf_counter`), less the seconds that it had run before.
    """

    def __init__(self, job: Job, settings: TrainSettings, accelerator: Accelerator, started: float) -> None:
        self.job, self.settings, self.accelerator, self.started = job, settings, accelerator, started

    def seconds(self) -> float:
        """How long the run has run, over all its starts."""
        return time.perf_counter() - self.started

    def is_due(self, stage: Stage, step: int) -> bool:
        """Every so many steps, or at the end of each epoch."""
        every = self.settings.save_every
        return stage.ends_epoch(step) if every is None else step % every == 0

    def save(self, stage: Stage, step: int) -> None:
        """Gather the state of all processes and write it on the main one."""
        about = {
            "settings": computed(self.settings),
            "processes": self.accelerator.num_processes,
            "seconds": self.seconds(),
        }
        checkpoint = capture(stage, step, about, self.accelerator)
        if self.accelerator.is_main_process:
            self.job.run.checkpoints.write(step, checkpoint)

    def look(self, stage: Stage, epoch: int) -> Row:
        """The k-NN accuracy, where it is due."""
        due = epoch % self.settings.knn_every == 0 or epoch == stage.plan.epochs
        held_out = stage.number == 1 and len(self.job.division.held_out) > 0
        if not (due and held_out and self.accelerator.is_main_process):
            return {}
        return knn_accuracy(self.job, stage.scored().encoder, self.accelerator.device)
