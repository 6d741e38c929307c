"""The state of a continual run between tasks: the buffer and the accuracies so far, as its checkpoints hold them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pml_supcon.data.replay import ReplayBuffer
from pml_supcon.data.streams import TaskStream
from pml_supcon.training.callbacks import CheckpointCallback
from pml_supcon.training.continual.settings import ContinualSettings
from pml_supcon.training.monitoring import History
from pml_supcon.training.run import RunContext, RunFolder

Matrix = list[list[float | None]]  # T x T: row t has the accuracies on all tasks after task t, None if not yet known


@dataclass
class Progress:
    """The state of a continual run between two tasks.

    Attributes:
        buffer: The buffer, as filled by the tasks before; None for a method without one.
        class_il: The accuracies among the classes of all tasks so far.
        task_il: The accuracies among the classes of each task.
        first_step: The number of steps of the tasks before.
    """

    buffer: ReplayBuffer | None
    class_il: Matrix = field(default_factory=list)
    task_il: Matrix = field(default_factory=list)
    first_step: int = 0

    @classmethod
    def resumed(cls, settings: ContinualSettings, saved: dict[str, Any] | None) -> "Progress":
        """Return the state at the start of a run, or the ``saved`` one of a checkpoint."""
        buffer = ReplayBuffer(settings.buffer_size, seed=settings.seed) if settings.replayed else None
        if saved is None:
            return cls(buffer)
        if buffer is not None:
            buffer.load_state_dict(saved["buffer"])
        return cls(buffer, saved["class_il"], saved["task_il"], saved["first_step"])

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return {
            "buffer": None if self.buffer is None else self.buffer.state_dict(),
            "class_il": self.class_il,
            "task_il": self.task_il,
            "first_step": self.first_step,
        }


@dataclass(frozen=True)
class ContinualRun:
    """A continual run: its folder, processes, tasks, and its state between tasks.

    Attributes:
        run: The folder, with the settings.
        accelerator: The processes.
        stream: The tasks.
        progress: The buffer and the accuracies so far.
        replaced: The number of broken images that others of their class replace.
    """

    run: RunFolder[ContinualSettings]
    accelerator: Accelerator
    stream: TaskStream
    progress: Progress
    replaced: int = 0

    @property
    def trainings(self) -> list[list[int]]:
        """The tasks, from 0, that each training adds: one, or all of them at once."""
        tasks = list(range(len(self.stream.tasks)))
        return [tasks] if self.run.settings.method == "joint" else [[task] for task in tasks]

    def new_places(self, number: int) -> Tensor:
        """Return the places of the training images that training ``number``, from 1, adds."""
        return torch.cat([self.stream.training_places(task) for task in self.trainings[number - 1]])


class TaskCheckpoints(CheckpointCallback):
    """The checkpoints of a task; they hold the state of the tasks before too."""

    def __init__(self, context: RunContext, history: History, started: float, progress: Progress) -> None:
        super().__init__(context, history, started)
        self.progress = progress

    def about(self) -> dict[str, Any]:
        """Return the plain values of a checkpoint, besides stage and step."""
        return super().about() | {"continual": self.progress.state_dict()}
