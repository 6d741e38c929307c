"""The training loop of a stage: the step first, then the epochs around it."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from pml_supcon.data.label_kinds import classes_of
from pml_supcon.training.callbacks import Callback
from pml_supcon.training.monitoring import EpochTimer, History, Row, StepLogger, alignment_and_uniformity
from pml_supcon.training.signals import SignalHandler, Stopped
from pml_supcon.training.stage import Stage


def take_step(
    stage: Stage, views: Tensor, labels: Tensor, step: int, logger: StepLogger, accelerator: Accelerator
) -> Tensor:
    """Take the optimizer step that follows ``step`` steps of the run.

    ``views`` ``(B, V, C, H, W)`` and ``labels`` ``(B, ...)`` are the batch of this process. The logger keeps loss,
    gradient norm and learning rate on the device. Returns the outputs of the network, ``(B, V, D)``, detached.
    """
    # 1. The learning rate of this step.
    stage.schedule.step_update(step - stage.first_step)
    rate = stage.optimizer.param_groups[0]["lr"]
    views = views.to(accelerator.device, non_blocking=True)
    labels = labels.to(accelerator.device, non_blocking=True)
    # 2. Forward: keys of the momentum encoder (without gradient), outputs (B, V, D), the scalar loss.
    with accelerator.autocast():  # the precision of the prepared network
        keys = None if stage.key_encoder is None else stage.key_encoder(views)
    outputs: Tensor = stage.network(views)
    loss = stage.criterion(outputs, labels, keys)
    # 3. Backward, clipping, update.
    accelerator.backward(loss)
    average_gradients(stage.criterion, accelerator)
    norm = clip_gradients(stage, accelerator)
    stage.optimizer.step()
    stage.optimizer.zero_grad()
    # 4. Moving averages of the weights: the momentum encoder, and the model that is scored.
    if stage.key_encoder is not None:
        stage.key_encoder.update_parameters(stage.network)
    if stage.ema is not None:
        stage.ema.update(stage.model, step=step - stage.first_step + 1)
    logger.add(loss, norm, rate)
    return outputs.detach()


def average_gradients(criterion: nn.Module, accelerator: Accelerator) -> None:
    """Average the gradients of the loss's own parameters over processes, as data parallelism does for the network."""
    for parameter in criterion.parameters():
        if parameter.grad is not None and accelerator.num_processes > 1:
            parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")


def clip_gradients(stage: Stage, accelerator: Accelerator) -> Tensor:
    """Clip the gradients if the plan has a limit; return their total norm before clipping."""
    accelerator.unscale_gradients(stage.optimizer)
    trained = (*stage.model.parameters(), *stage.criterion.parameters())
    parameters = [parameter for parameter in trained if parameter.grad is not None]
    limit = stage.plan.clip_gradient_norm
    if limit is not None:
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    return torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def run_stage(
    stage: Stage,
    start: int,
    accelerator: Accelerator,
    *,
    history: History | None = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train from step ``start`` of the run to the end of the stage.

    The history receives a row for each step and epoch. Callbacks save checkpoints and add metrics of epochs.

    Raises:
        FloatingPointError: If the loss, its gradient or a saved weight is infinite or NaN.
        Stopped: If a signal arrived; the callbacks have saved a checkpoint.
        OSError: If a checkpoint cannot be written; earlier checkpoints are unchanged.
    """
    step, logger = start, StepLogger(stage, history, accelerator)
    progress = tqdm(
        total=stage.last_step - stage.first_step,
        initial=start - stage.first_step,
        desc=f"stage {stage.number}",
        unit="step",
        disable=None if accelerator.is_main_process else True,  # None: off if stderr is not a terminal
    )
    with SignalHandler() as signals, progress:
        while step < stage.last_step:
            # One epoch, or the rest of one after a resume: the sampler continues at its batch.
            stage.network.train()
            stage.sampler.set_epoch(stage.epoch_of(step + 1) - 1)
            timer, images = EpochTimer(), 0
            for views, labels in timer.timed(stage.loader):
                outputs = take_step(stage, views, labels, step, logger, accelerator)
                step, images = step + 1, images + len(labels) * accelerator.num_processes
                progress.update()
                signal = signals.should_stop()
                save = signal or step == stage.last_step or any(each.is_due(stage, step) for each in callbacks)
                if logger.due or save or stage.ends_epoch(step):
                    logger.flush(step)
                    progress.set_postfix(epoch=stage.epoch_of(step), loss=f"{logger.last:.3f}")
                if stage.ends_epoch(step):  # before the checkpoint, so that a resumed run has this epoch's metrics
                    row: Row = {"stage": stage.number, "epoch": stage.epoch_of(step), "step": step}
                    row |= timer.throughput(images) | batch_metrics(stage, outputs, labels)
                    for callback in callbacks:
                        row |= callback.epoch_metrics(stage, stage.epoch_of(step))
                    if history is not None:
                        history.add([row])
                if save:
                    for callback in callbacks:
                        callback.save(stage, step)
                if signal:
                    raise Stopped(signal, f"after step {step} of {stage.last_step}")


def batch_metrics(stage: Stage, outputs: Tensor, labels: Tensor) -> Row:
    """Return the metrics of the epoch's last batch, a learnt temperature, and the statistics of a miner.

    The metrics are alignment and uniformity, and the accuracy of the neighbours of NNCLR. Labels without classes, as of
    mixed images, have neither alignment nor this accuracy.
    """
    classes = classes_of(labels.to(outputs.device))
    metrics: Row = alignment_and_uniformity(stage.criterion.embeddings(outputs), classes)
    if (temperature := stage.criterion.temperature()) is not None:
        metrics["temperature"] = temperature
    if (nn_accuracy := stage.criterion.nn_accuracy()) is not None:
        metrics["nn_accuracy"] = nn_accuracy
    miner = stage.criterion.miner
    if miner is not None:
        metrics |= {f"miner/{name}": value for name, value in miner.report().items()}
        miner.reset()
    return metrics
