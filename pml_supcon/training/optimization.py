"""The optimizer and learning rate schedule of a stage, from timm."""

import itertools
from typing import Any

import timm.optim
import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from pml_supcon._checks import did_you_mean
from pml_supcon.training.config.settings import OptimizationSettings

WARMUP_FROM = 0.01  # of the peak learning rate


def check_optimizer(name: str, flag: str) -> None:
    """Raise ValueError unless the name is an optimizer of timm."""
    names = [known for known in timm.optim.list_optimizers() if known != "adahessian"]  # it needs second derivatives
    if name not in names:
        hint = did_you_mean(name, names, number=3)
        raise ValueError(f"Expected --{flag} to be one of timm's optimizers, but got {name!r}{hint}")


def build_optimizer(plan: OptimizationSettings, *modules: nn.Module) -> torch.optim.Optimizer:
    """Build a timm optimizer over the trainable parameters of modules, without weight decay on biases and norms.

    A single number, such as a learnt temperature, has no weight decay in any case. LARS scales the step by the norm of
    each weight, except for biases and norms, for any weight decay.

    Raises:
        ValueError: If the optimizer does not accept its arguments.
    """
    groups: list[dict[str, Any]] = []
    for decayed in (True, False):
        chosen = [
            parameter
            for parameter in itertools.chain.from_iterable(module.parameters() for module in modules)
            if parameter.requires_grad and (parameter.ndim > (0 if plan.decay_all else 1)) == decayed
        ]
        adapt = {"always_adapt": decayed} if plan.optimizer.removeprefix("n") in ("lars", "larc") else {}
        if chosen:
            groups.append({"params": chosen, "weight_decay": plan.weight_decay if decayed else 0.0, **adapt})
    try:
        optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
            groups, opt=plan.optimizer, lr=plan.learning_rate, weight_decay=plan.weight_decay, **plan.optimizer_args
        )
    except Exception as error:  # each optimizer has its own errors for its arguments
        raise ValueError(f"{plan.optimizer} could not be built with {plan.optimizer_args}: {error}") from error
    return optimizer


def try_optimizer(plan: OptimizationSettings) -> None:
    """Take one step of the optimizer on a small layer.

    Raises:
        ValueError: If the optimizer does not accept its arguments, when it is built or in a step.
    """
    layer = nn.Linear(1, 1)
    optimizer = build_optimizer(plan, layer)
    layer(torch.ones(1, 1)).sum().backward()
    try:
        optimizer.step()
    except Exception as error:  # see `build_optimizer`
        raise ValueError(f"{plan.optimizer} takes no step with {plan.optimizer_args}: {error}") from error


def build_schedule(plan: OptimizationSettings, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Scheduler:
    """Build the schedule of the learning rate, updated every step (``step_update``)."""
    total = plan.epochs * steps_per_epoch
    warmup = {
        "warmup_t": round(plan.warmup_epochs * steps_per_epoch),
        "warmup_lr_init": plan.learning_rate * WARMUP_FROM,
        "warmup_prefix": False,  # decays are counted from the first step
        "t_in_epochs": False,
    }
    if plan.schedule == "cosine":
        return CosineLRScheduler(optimizer, t_initial=total, **warmup)
    decay_steps = sorted(round(epoch * steps_per_epoch) for epoch in plan.decay_epochs)
    if plan.schedule == "exponential":
        return StepLRScheduler(optimizer, decay_t=max(1, decay_steps[0]), decay_rate=plan.decay_rate, **warmup)
    late = [step + 1 for step in decay_steps]  # timm decays one step early
    return MultiStepLRScheduler(optimizer, decay_t=late, decay_rate=plan.decay_rate, **warmup)
