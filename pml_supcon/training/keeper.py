"""What is kept of a run while it goes: checkpoints, and the k-NN accuracy of held-out images in between."""

import time

import torch
from torch import nn

from pml_supcon.training.history import History, Row
from pml_supcon.training.job import Job
from pml_supcon.training.run_folder import computed
from pml_supcon.training.run_state import capture
from pml_supcon.training.scoring import knn_accuracy
from pml_supcon.training.stage import Stage


class RunKeeper:
    """Writes a run's checkpoints and looks at its held-out images.

    Args:
        job: the run.
        history: its history.
        started: when it started (`time.perf_counter`), less the seconds that it had run before.
    """

    def __init__(self, job: Job, history: History, started: float) -> None:
        self.job, self.history, self.started = job, history, started
        self.settings, self.accelerator = job.settings, job.accelerator

    def seconds(self) -> float:
        """How long the run has run, over all its starts."""
        return time.perf_counter() - self.started

    def is_due(self, stage: Stage, step: int) -> bool:
        """Every so many steps, or at the end of each epoch."""
        every = self.settings.save_every
        return stage.ends_epoch(step) if every is None else step % every == 0

    def save(self, stage: Stage, step: int) -> None:
        """Gather the state of all processes and write it on the main one.

        Raises:
            FloatingPointError: weights are infinite or NaN: the checkpoints that are there stay the last good ones.
        """
        if not all_finite(stage.model):
            raise FloatingPointError(f"the weights are no longer finite after step {step}")
        about = {
            "settings": computed(self.settings),
            "processes": self.accelerator.num_processes,
            "precision": self.accelerator.mixed_precision,
            "seconds": self.seconds(),
        }
        checkpoint = capture(stage, step, about, self.accelerator)
        if self.accelerator.is_main_process:
            self.history.to_disk()
            self.job.run.checkpoints.write(step, checkpoint)

    def look(self, stage: Stage, epoch: int) -> Row:
        """The k-NN accuracy, where it is due; all processes ask."""
        due = epoch % self.settings.knn_every == 0 or epoch == stage.plan.epochs
        held_out = stage.number == 1 and len(self.job.held_out) > 0
        return knn_accuracy(self.job, stage.scored().encoder) if due and held_out else {}


def all_finite(model: nn.Module) -> bool:
    """Whether no weight or buffer is infinite or NaN."""
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())
