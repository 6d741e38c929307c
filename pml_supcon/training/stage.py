"""One stage of a run: what is trained, by which loss, on what, for how long."""

from dataclasses import dataclass
from typing import Any

from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader

from pml_supcon.models import MomentumEncoder
from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.training.config import Plan
from pml_supcon.training.methods import Criterion


@dataclass(frozen=True)
class Stage:
    """What a stage is made of. Steps are counted over the whole run, from 1.

    Attributes:
        number: 1 or 2.
        plan: the optimisation.
        model: what is trained, unwrapped; its weights are saved.
        network: the same as it is called: in chunks, data-parallel.
        criterion: the loss.
        optimizer: as accelerate prepared it.
        schedule: the learning rate of every step.
        sampler: the batches.
        loader: their views.
        key_encoder: the momentum encoder that fills a queue, or None.
        ema: the moving average of the model, or None.
        first_step: steps of the run before this stage.
    """

    number: int
    plan: Plan
    model: nn.Module
    network: nn.Module
    criterion: Criterion
    optimizer: Any
    schedule: Scheduler
    sampler: MultiViewBatchSampler
    loader: DataLoader[Any]
    key_encoder: MomentumEncoder | None = None
    ema: ModelEmaV3 | None = None
    first_step: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.sampler)

    @property
    def last_step(self) -> int:
        """The run's steps at the end of this stage."""
        return self.first_step + self.steps_per_epoch * self.plan.epochs

    def epoch_of(self, step: int) -> int:
        """The epoch, from 1, to which a step belongs."""
        return (step - 1 - self.first_step) // self.steps_per_epoch + 1

    def ends_epoch(self, step: int) -> bool:
        """Whether a step is the last of its epoch."""
        return (step - self.first_step) % self.steps_per_epoch == 0

    def scored(self) -> Any:
        """The model that is scored: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module
