"""Callbacks of the training loop: checkpoints, and the k-NN accuracy of held-out images."""

import time
from typing import Any, Protocol

import torch
from torch import nn

from pml_supcon.data.label_kinds import classes_of
from pml_supcon.training.monitoring import History, Row
from pml_supcon.training.run import RunContext, computed, images_of
from pml_supcon.training.scoring import knn_accuracy
from pml_supcon.training.stage import Stage
from pml_supcon.training.state import capture


class Callback(Protocol):
    """An extension of the training loop. All processes call each method alike."""

    def is_due(self, stage: Stage, step: int) -> bool:
        """Return True if ``save`` is to be called after this step. The loop also calls it after the last step."""

    def save(self, stage: Stage, step: int) -> None:
        """Save the state after a step."""

    def epoch_metrics(self, stage: Stage, epoch: int) -> Row:
        """Return further metrics at the end of an epoch."""


class CheckpointCallback:
    """A callback that writes checkpoints and computes the k-NN accuracy of held-out images.

    ``started`` is the start of the run (``time.perf_counter``), minus the seconds before a resume. The history is
    synchronised to disk before each checkpoint.
    """

    def __init__(self, context: RunContext, history: History, started: float) -> None:
        self.context, self.history, self.started = context, history, started
        self.settings, self.accelerator = context.settings, context.accelerator

    def seconds(self) -> float:
        """Return the duration of the run, summed over all its starts."""
        return time.perf_counter() - self.started

    def is_due(self, stage: Stage, step: int) -> bool:
        """Return True every ``save_every`` steps; by default at the end of each epoch."""
        every = self.settings.save_every
        return stage.ends_epoch(step) if every is None else step % every == 0

    def save(self, stage: Stage, step: int) -> None:
        """Gather the state of all processes and write it on the main process.

        Raises:
            FloatingPointError: If a weight is infinite or NaN; earlier checkpoints are kept.
        """
        if not all_finite(stage.model):
            raise FloatingPointError(f"the weights are no longer finite after step {step}")
        checkpoint = capture(stage, step, self.about(), self.accelerator)
        if self.accelerator.is_main_process:
            checkpoint.about["history"] = self.history.to_disk()
            self.context.run.checkpoints.write(step, checkpoint)

    def about(self) -> dict[str, Any]:
        """Return the plain values of a checkpoint, besides stage and step."""
        return {
            "settings": computed(self.context.run.settings),
            "processes": self.accelerator.num_processes,
            "precision": self.accelerator.mixed_precision,
            "seconds": self.seconds(),
            **images_of(self.context.data),
        }

    def epoch_metrics(self, stage: Stage, epoch: int) -> Row:
        """Return the k-NN accuracy of held-out images with classes every ``knn_every`` epochs and after the last."""
        due = epoch % self.settings.knn_every == 0 or epoch == stage.plan.epochs
        has_classes = classes_of(self.context.split.held_out_labels) is not None
        held_out = stage.number == 1 and len(self.context.held_out) > 0 and has_classes
        return knn_accuracy(self.context, stage.scored().encoder) if due and held_out else {}


def all_finite(model: nn.Module) -> bool:
    """Return True if every weight and buffer is finite."""
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())
