"""The training loop of a stage."""

from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from pml_supcon.training.history import History, Row
from pml_supcon.training.recent import RecentSteps
from pml_supcon.training.stage import Stage
from pml_supcon.training.stopping import Stopped, StopRequest
from pml_supcon.training.watch import Stopwatch, spread_of


class Keeper(Protocol):
    """What the loop asks of the run that it is part of."""

    def is_due(self, stage: Stage, step: int) -> bool:
        """Whether a checkpoint is to be written after a step."""
        ...

    def save(self, stage: Stage, step: int) -> None:
        """Write a checkpoint; all processes call it."""
        ...

    def look(self, stage: Stage, epoch: int) -> Row:
        """What else is to be seen after an epoch."""
        ...


def run_stage(stage: Stage, start: int, keeper: Keeper, history: History, accelerator: Accelerator) -> None:
    """Train from a step of the run to the end of the stage.

    Raises:
        FloatingPointError: the loss, its gradient or the weights became infinite or NaN.
        Stopped: a signal came; a checkpoint was written first.
        OSError: a checkpoint could not be written; those before it are as they were.
    """
    step, recent = start, RecentSteps(stage, history, accelerator)
    progress = tqdm(
        total=stage.last_step - stage.first_step,
        initial=start - stage.first_step,
        desc=f"stage {stage.number}",
        unit="step",
        disable=None if accelerator.is_main_process else True,  # None: where nobody looks, as in a log
    )
    with StopRequest() as stop, progress:
        while step < stage.last_step:
            stage.network.train()
            stage.sampler.set_epoch(stage.epoch_of(step + 1) - 1)
            watch, images = Stopwatch(), 0
            for views, labels in watch.waiting_for(stage.loader):
                outputs = take_step(stage, views, labels, step, recent, accelerator)
                step, images = step + 1, images + len(labels) * accelerator.num_processes
                progress.update()
                signal = stop.agreed()
                save = signal or keeper.is_due(stage, step) or step == stage.last_step
                if recent.due or save or stage.ends_epoch(step):
                    recent.settle(step)
                    progress.set_postfix(epoch=stage.epoch_of(step), loss=f"{recent.last:.3f}")
                if stage.ends_epoch(step):  # before a checkpoint: a run that goes on from it has seen this epoch
                    seen = watch.seen(images) | seen_of_batch(stage, outputs, labels)
                    seen |= keeper.look(stage, stage.epoch_of(step))
                    history.add([{"stage": stage.number, "epoch": stage.epoch_of(step), "step": step, **seen}])
                if save:
                    keeper.save(stage, step)
                if signal:
                    raise Stopped(signal, f"after step {step} of {stage.last_step}")


def take_step(
    stage: Stage, views: Tensor, labels: Tensor, step: int, recent: RecentSteps, accelerator: Accelerator
) -> Tensor:
    """One step of the optimizer, after `step` others; returns the network's outputs `(B, V, D)`."""
    stage.schedule.step_update(step - stage.first_step)
    rate = stage.optimizer.param_groups[0]["lr"]
    views = views.to(accelerator.device, non_blocking=True)
    labels = labels.to(accelerator.device, non_blocking=True)
    with accelerator.autocast():  # as the model that accelerate has prepared
        keys = None if stage.key_encoder is None else stage.key_encoder(views)
    outputs: Tensor = stage.network(views)
    loss = stage.criterion(outputs, labels, keys)
    accelerator.backward(loss)
    norm = limit_gradients(stage, accelerator)
    stage.optimizer.step()
    stage.optimizer.zero_grad()
    if stage.key_encoder is not None:
        stage.key_encoder.update_parameters(stage.network)
    if stage.ema is not None:
        stage.ema.update(stage.model, step=step - stage.first_step + 1)
    recent.add(loss, norm, rate)
    return outputs.detach()


def limit_gradients(stage: Stage, accelerator: Accelerator) -> Tensor:
    """Clip the gradients where that is asked for; returns the norm of all of them before."""
    accelerator.unscale_gradients(stage.optimizer)
    parameters = [parameter for parameter in stage.model.parameters() if parameter.grad is not None]
    most = stage.plan.clip_gradient_norm
    if most is not None:
        return torch.nn.utils.clip_grad_norm_(parameters, most)
    return torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def seen_of_batch(stage: Stage, outputs: Tensor, labels: Tensor) -> Row:
    """What the last batch of an epoch shows, and what the miner did in the epoch."""
    seen: Row = spread_of(stage.criterion.embeddings(outputs), labels.to(outputs.device))
    miner = stage.criterion.miner
    if miner is not None:
        seen |= {f"miner/{name}": value for name, value in miner.report().items()}
        miner.reset()
    return seen
