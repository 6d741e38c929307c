r"""Train an encoder with a supervised contrastive loss, then score it: retrieval and a linear probe.

    accelerate launch recipes/train.py                                        # digits, one process, about a minute
    accelerate launch recipes/train.py --data imagefolder:my/images --epochs 100
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 recipes/train.py         # several processes without a GPU
    accelerate launch recipes/train.py --data torchvision:CIFAR10 --batch-size 6144 --chunk-size 256

Stage 1 trains the encoder under a projection head with the contrastive loss over V views of each image (or under a
classifier with cross entropy); stage 2 freezes the encoder, drops the head, and scores the encoder's output on the
test split, once, after the last epoch. `--help` lists the settings, README has the figures of the last record.
"""

import math
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from timm.scheduler import CosineLRScheduler
from torch import Tensor
from tqdm.auto import tqdm

from pml_supcon.models import save_encoder
from pml_supcon.recipes import report
from pml_supcon.recipes.evaluation import draw, embed, score
from pml_supcon.recipes.job import Job, prepare
from pml_supcon.recipes.run_folder import environment
from pml_supcon.recipes.settings import TrainSettings, parse_settings

CHECK_EVERY = 50  # steps between looks at the losses on the host


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score, report."""
    started = time.perf_counter()
    settings = parse_settings(arguments)
    accelerator = Accelerator()
    try:
        job = prepare(settings, accelerator)
    except (ValueError, TypeError, OSError, ImportError) as error:
        fail(error)
    try:
        history = train(job, settings, accelerator)
        if accelerator.is_main_process:
            finish(job, settings, accelerator, history, started)
    except FloatingPointError as error:
        fail(error)
    accelerator.end_training()


def finish(job: Job, settings: TrainSettings, accelerator: Accelerator, history: list[float], started: float) -> None:
    """Stage 2, on one process: score the frozen encoder, leave its files, print the summary."""
    embedded = embed(job, settings, accelerator.device)
    save_encoder(job.model.encoder, job.run.path / "encoder", mean=job.data.mean, std=job.data.std)
    report.draw_loss_curve(history, len(job.sampler), job.run.path / "loss_curve.png")
    metrics: dict[str, Any] = {
        **score(embedded),
        "train/final_loss": sum(history[-len(job.sampler) :]) / len(job.sampler),
        "train/steps": len(history),
        "seconds/total": round(time.perf_counter() - started, 1),
        "seed": settings.seed,
        "method": settings.method,
        "data": settings.data,
        "batch_size": settings.batch_size,
        "chunk_size": settings.chunk_size or 0,
        "queue_size": settings.queue_size or 0,
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        **environment(),
    }
    job.run.write_metrics(metrics)  # before the pictures, so that none of them can cost the scores
    draw(job, settings, embedded)
    metrics["seconds/total"] = round(time.perf_counter() - started, 1)
    job.run.write_metrics(metrics)
    shown = ("linear_probe/", "retrieval/", "train/", "seconds/", "seed")
    print(report.summary_table({name: value for name, value in metrics.items() if name.startswith(shown)}))
    print(f"run folder: {job.run.path}")


def train(job: Job, settings: TrainSettings, accelerator: Accelerator) -> list[float]:
    """Stage 1; returns the loss of every step.

    Raises:
        FloatingPointError: the loss became infinite or NaN.
    """
    steps = len(job.sampler) * settings.epochs
    schedule = CosineLRScheduler(
        job.optimizer,
        t_initial=steps,
        warmup_t=round(len(job.sampler) * settings.warmup_epochs),
        warmup_lr_init=settings.learning_rate / 100,
        t_in_epochs=False,
    )
    model, optimizer = accelerator.prepare(job.network, job.optimizer)
    key_encoder = None if job.key_encoder is None else job.key_encoder.to(accelerator.device)
    set_seed(settings.seed, device_specific=True)  # processes augment differently
    history: list[float] = []
    recent: list[Tensor] = []
    with tqdm(total=steps, desc="stage 1", unit="step", disable=not accelerator.is_main_process) as bar:
        for epoch in range(settings.epochs):
            model.train()
            job.sampler.set_epoch(epoch)
            for views, labels in job.loader:
                schedule.step_update(len(history) + len(recent))
                views = views.to(accelerator.device, non_blocking=True)
                with accelerator.autocast():  # as the model that accelerate has prepared
                    keys = None if key_encoder is None else key_encoder(views)
                loss = job.criterion(model(views), labels.to(accelerator.device, non_blocking=True), keys)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                if key_encoder is not None:
                    key_encoder.update_parameters(job.network)
                recent.append(loss.detach())
                bar.update()
                if len(recent) == CHECK_EVERY:
                    history += settle(recent, job, accelerator, len(history))
                    recent = []
            history += settle(recent, job, accelerator, len(history))
            recent = []
            bar.set_postfix(epoch=epoch + 1, loss=f"{history[-1]:.3f}")
            if accelerator.is_main_process:
                job.run.save_checkpoint(job.model, epoch + 1)
    return history


def settle(recent: list[Tensor], job: Job, accelerator: Accelerator, done: int) -> list[float]:
    """The losses of recent steps on the host, the same on all processes; refuses one that is not finite."""
    if not recent:
        return []
    values: list[float] = accelerator.reduce(torch.stack(recent), reduction="mean").tolist()
    for step, value in enumerate(values, start=done + 1):
        if not math.isfinite(value):
            last = job.run.checkpoint or "none, it happened in the first epoch"
            raise FloatingPointError(
                f"the loss became {value} at step {step} (epoch {(step - 1) // len(job.sampler) + 1}); "
                f"last good checkpoint: {last}; a lower --learning_rate may help"
            )
    return values


def fail(error: Exception) -> NoReturn:
    """End the program with one line."""
    if PartialState().is_main_process:
        print(f"train.py: error: {error}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
