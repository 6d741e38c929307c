"""The training loop of a stage: every step, every look at it, every checkpoint."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pml_supcon.models import MomentumEncoder
from pml_supcon.recipes.history import History, Row
from pml_supcon.recipes.methods import Criterion
from pml_supcon.recipes.settings import Plan
from pml_supcon.recipes.stopping import Stopped, StopRequest
from pml_supcon.recipes.watch import Stopwatch, spread_of
from pml_supcon.samplers import MultiViewBatchSampler

CHECK_EVERY = 50  # steps between looks at the losses on the host


@dataclass
class Stage:
    """What is trained, by which loss, on what, and for how long.

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
    def last_step(self) -> int:
        """The run's steps at the end of this stage."""
        return self.first_step + len(self.sampler) * self.plan.epochs

    def scored(self) -> nn.Module:
        """The model that is scored: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module


@dataclass
class Hooks:
    """What the loop calls.

    Attributes:
        save: writes a checkpoint after a step.
        is_due: whether one is due after a step, told whether it ends an epoch.
        look: what else is to be seen at the end of an epoch (by number, from 1).
        last_good: the newest checkpoint, in words.
    """

    save: Callable[[int], None]
    is_due: Callable[[int, bool], bool]
    look: Callable[[int], Row]
    last_good: Callable[[], str]


def run_stage(stage: Stage, start: int, hooks: Hooks, history: History, accelerator: Accelerator) -> None:
    """Train from a step of the run to the end of the stage.

    Raises:
        FloatingPointError: the loss became infinite or NaN.
        Stopped: a signal came; a checkpoint was written first.
        OSError: a checkpoint could not be written; those before it are as they were.
    """
    per_epoch = len(stage.sampler)
    step, recent = start, _Recent(stage, history, accelerator, hooks.last_good)
    title = f"stage {stage.number}"
    with (
        StopRequest() as stop,
        tqdm(
            total=per_epoch * stage.plan.epochs,
            initial=start - stage.first_step,
            desc=title,
            unit="step",
            disable=not accelerator.is_main_process,
        ) as bar,
    ):
        while step < stage.last_step:
            epoch = (step - stage.first_step) // per_epoch
            stage.network.train()
            stage.sampler.set_epoch(epoch)
            watch, images = Stopwatch(), 0
            outputs = labels = None
            for views, labels in watch.waiting_for(stage.loader):
                outputs = _step(stage, views, labels, step, recent, accelerator)
                step, images = step + 1, images + len(labels) * accelerator.num_processes
                bar.update()
                ends_epoch = (step - stage.first_step) % per_epoch == 0
                if len(recent) == CHECK_EVERY or ends_epoch:
                    recent.settle(step)
                number = stop.agreed()
                if not ends_epoch and (number or hooks.is_due(step, False)):
                    recent.settle(step)
                    hooks.save(step)
                if number and not ends_epoch:
                    raise Stopped(number, f"after step {step} of {stage.last_step}")
            _look(stage, epoch + 1, step, outputs, labels, watch.seen(images), hooks, history)
            bar.set_postfix(epoch=epoch + 1, loss=f"{recent.last:.3f}")
            number = stop.agreed()
            if number or hooks.is_due(step, True) or step == stage.last_step:
                hooks.save(step)
            if number:
                raise Stopped(number, f"after step {step} of {stage.last_step}")


def _step(
    stage: Stage, views: Tensor, labels: Tensor, step: int, recent: "_Recent", accelerator: Accelerator
) -> Tensor:
    """One step of the optimizer; returns the network's outputs `(B, V, D)`."""
    stage.schedule.step_update(step - stage.first_step)
    views = views.to(accelerator.device, non_blocking=True)
    labels = labels.to(accelerator.device, non_blocking=True)
    with accelerator.autocast():  # as the model that accelerate has prepared
        keys = None if stage.key_encoder is None else stage.key_encoder(views)
    outputs: Tensor = stage.network(views)
    loss = stage.criterion(outputs, labels, keys)
    accelerator.backward(loss)
    norm = _gradient_norm(stage, accelerator)
    rate = stage.optimizer.param_groups[0]["lr"]
    stage.optimizer.step()
    stage.optimizer.zero_grad()
    if stage.key_encoder is not None:
        stage.key_encoder.update_parameters(stage.network)
    if stage.ema is not None:
        stage.ema.update(stage.model, step=step - stage.first_step + 1)
    recent.add(loss.detach(), norm, rate)
    return outputs.detach()


def _gradient_norm(stage: Stage, accelerator: Accelerator) -> Tensor:
    """The norm of all gradients, before they are clipped where that is asked for."""
    parameters = [parameter for parameter in stage.model.parameters() if parameter.requires_grad]
    most = math.inf if stage.plan.clip_gradient_norm is None else stage.plan.clip_gradient_norm
    accelerator.unscale_gradients(stage.optimizer)
    if most < math.inf:
        return torch.nn.utils.clip_grad_norm_(parameters, most)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).detach()


def _look(
    stage: Stage,
    epoch: int,
    step: int,
    outputs: Tensor | None,
    labels: Tensor | None,
    speed: Row,
    hooks: Hooks,
    history: History,
) -> None:
    """Write the row of an epoch."""
    seen: Row = {"stage": stage.number, "epoch": epoch, "step": step, **speed}
    if outputs is not None and labels is not None:  # none came where a run went on at the end of an epoch
        seen |= spread_of(stage.criterion.embeddings(outputs), labels.to(outputs.device))
    if stage.criterion.miner is not None:
        seen |= {f"miner/{name}": value for name, value in stage.criterion.miner.report().items()}
        stage.criterion.miner.reset()
    history.add([seen | hooks.look(epoch)])


class _Recent:
    """Losses and gradient norms that have not been looked at on the host."""

    def __init__(self, stage: Stage, history: History, accelerator: Accelerator, last_good: Callable[[], str]) -> None:
        self.stage, self.history, self.accelerator, self.last_good = stage, history, accelerator, last_good
        self.seen: list[Tensor] = []
        self.rates: list[float] = []
        self.last = math.nan

    def __len__(self) -> int:
        return len(self.seen)

    def add(self, loss: Tensor, norm: Tensor, rate: float) -> None:
        """Take note of a step."""
        self.seen.append(torch.stack([loss.float(), norm.float()]))
        self.rates.append(rate)

    def settle(self, step: int) -> None:
        """Look at them, the same on all processes, the last being that of `step`; refuse a loss that is not finite."""
        if not self.seen:
            return
        values = self.accelerator.reduce(torch.stack(self.seen), reduction="mean").tolist()
        rows: list[Row] = []
        per_epoch, first = len(self.stage.sampler), step - len(values) + 1
        for at, (loss, norm), rate in zip(range(first, step + 1), values, self.rates, strict=True):
            epoch = (at - 1 - self.stage.first_step) // per_epoch + 1
            if not math.isfinite(loss):
                self.history.add(rows)
                raise FloatingPointError(
                    f"the loss became {loss} at step {at} (epoch {epoch}); last good checkpoint: {self.last_good()}; a "
                    "lower --learning_rate may help"
                )
            rows.append(
                {"stage": self.stage.number, "epoch": epoch, "step": at, "loss": loss, "learning_rate": rate}
                | ({"gradient_norm": norm} if math.isfinite(norm) else {})
            )
        self.history.add(rows)
        self.last, self.seen, self.rates = rows[-1]["loss"], [], []
