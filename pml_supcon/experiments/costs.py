"""Measure the milliseconds of a loss with its miner, forward and backward."""

import statistics
import time
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from pml_supcon.training.config import TrainSettings
from pml_supcon.training.methods import Criterion, build_criterion

ROUNDS, WARM_UP = 9, 2
CLASSES, SPREAD = 10, 0.7  # spread of rows around their class centre: some negatives are nearer than positives


def milliseconds_of(trainings: Mapping[str, TrainSettings], accelerator: Accelerator, *, seed: int) -> dict[str, float]:
    """Return the median time of each loss on one batch, measured round-robin so that background load affects all alike.

    Call it on all processes; each has a shard of the batch, whose shape follows from the settings.
    """
    device = accelerator.device
    criteria = {name: build_criterion(settings).to(device) for name, settings in trainings.items()}
    times: dict[str, list[float]] = {name: [] for name in trainings}
    for _ in range(WARM_UP + ROUNDS):
        for name, settings in trainings.items():
            outputs, labels = batch_for(settings, accelerator, seed=seed)
            times[name].append(_seconds(criteria[name], outputs, labels))
    return {name: 1000 * statistics.median(each[WARM_UP:]) for name, each in times.items()}


def batch_for(settings: TrainSettings, accelerator: Accelerator, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return this process's shard of a batch: unit rows ``(B, V, D)`` around class centres, and labels ``(B,)``."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(CLASSES, settings.head_dim, generator=generator))
    labels = torch.arange(settings.batch_size) % CLASSES
    noise = torch.randn(settings.batch_size, settings.views, settings.head_dim, generator=generator)
    rows = F.normalize(centres[labels][:, None] + SPREAD * F.normalize(noise, dim=-1), dim=-1)
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    return rows[share].to(accelerator.device).requires_grad_(), labels[share].to(accelerator.device)


def _seconds(criterion: Criterion, outputs: Tensor, labels: Tensor) -> float:
    _wait(outputs)
    started = time.perf_counter()
    criterion(outputs, labels).backward()
    _wait(outputs)
    return time.perf_counter() - started


def _wait(outputs: Tensor) -> None:
    if outputs.device.type == "cuda":
        torch.cuda.synchronize(outputs.device)
