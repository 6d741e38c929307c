"""Optimizers and schedules: updates computed by hand, learning rates by their formulas."""

import math

import pytest
import torch
from torch import nn

from pml_supcon.training.config import TrainSettings
from pml_supcon.training.config.settings import OptimizationSettings
from pml_supcon.training.optimization import build_optimizer, build_schedule, check_optimizer

DEFAULTS = {"epochs": 4, "optimizer": "sgd", "optimizer_args": {}, "learning_rate": 0.2, "weight_decay": 0.1}
DEFAULTS |= {"warmup_epochs": 0.0, "schedule": "cosine", "decay_epochs": [], "decay_rate": 0.1}


def plan(**options):
    return OptimizationSettings(**DEFAULTS | options)


def model():
    """Return a weight, its bias, and the scale and shift of a norm."""
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def take_step(**options):
    """Yield each weight before a step, its gradient, and the weight after the step."""
    stepped = model()
    for parameter in stepped.parameters():
        nn.init.normal_(parameter)
        parameter.grad = torch.randn_like(parameter)
    before = [(parameter.detach().clone(), parameter.grad.clone()) for parameter in stepped.parameters()]
    build_optimizer(plan(**options), stepped).step()
    for (weight, gradient), parameter in zip(before, stepped.parameters(), strict=True):
        yield weight, gradient, parameter.detach()


# optimizers


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("everything", [False, True])
def test_lars_by_hand(decay, everything):
    options = {"optimizer": "lars", "optimizer_args": {"momentum": 0.0}, "weight_decay": decay, "decay_all": everything}
    for weight, gradient, after in take_step(**options):
        change = gradient
        if everything or weight.ndim > 1:  # You et al. (2017): the norm of the weight over that of the gradient
            change = gradient + decay * weight
            change = change * 0.001 * weight.norm() / (gradient.norm() + decay * weight.norm())
        torch.testing.assert_close(after, weight - 0.2 * change, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("everything", [False, True])
def test_sgd_by_hand(everything):
    for weight, gradient, after in take_step(optimizer_args={"momentum": 0.5}, decay_all=everything):
        change = gradient + (0.1 * weight if everything or weight.ndim > 1 else 0)
        torch.testing.assert_close(after, weight - 0.2 * 1.5 * change)  # Nesterov, first step


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "rmsprop", "adamw"])
def test_every_trainable_weight_is_in_one_group(optimizer):
    check_optimizer(optimizer, "optimizer")
    partly_frozen = nn.ModuleList([model(), model().requires_grad_(False)])
    groups = build_optimizer(plan(optimizer=optimizer), partly_frozen).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in partly_frozen[0].parameters())
    assert all(group["lr"] == 0.2 for group in groups)


@pytest.mark.parametrize(
    ("optimizer", "arguments", "message"),
    [
        ("sgd", {"momentun": 0.9}, r"sgd could not be built with \{'momentun': 0.9\}: .*momentun"),
        ("adamw", {"betas": [2.0, 0.9]}, r"adamw could not be built with .*beta"),
        ("lars", {"lr": 3}, "lars could not be built with .*multiple values for keyword argument 'lr'"),
    ],
)
def test_invalid_arguments_raise(optimizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(plan(optimizer=optimizer, optimizer_args=arguments), model())


# schedules

STEPS = 10  # an epoch


def rates(**options):
    """Return the learning rate of each of 40 steps, updated as the loop does."""
    chosen = plan(**options)
    optimizer = build_optimizer(chosen, model())
    schedule = build_schedule(chosen, optimizer, STEPS)
    found = []
    for step in range(chosen.epochs * STEPS):
        schedule.step_update(step)
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        found.append(optimizer.param_groups[0]["lr"])
    return found


SHARES = {
    "cosine": ({}, lambda step: (1 + math.cos(math.pi * step / 40)) / 2),
    "constant": ({}, lambda step: 1),
    "steps": ({"decay_epochs": [3, 2.04]}, lambda step: 0.1 ** ((step >= 20) + (step >= 30))),  # nearest steps
    "exponential": ({"decay_epochs": [0.5], "decay_rate": 0.9}, lambda step: 0.9 ** (step // 5)),
}


@pytest.mark.parametrize("warmup", [0.0, 1.5, 4.0])
@pytest.mark.parametrize("schedule", SHARES)
def test_schedule_follows_its_formula(schedule, warmup):
    """The warm-up is linear from a hundredth of the peak; decays are counted from the first step."""
    options, share = SHARES[schedule]
    until = round(warmup * STEPS)
    wanted = [0.2 * (0.01 + 0.99 * step / until if step < until else share(step)) for step in range(40)]
    assert rates(schedule=schedule, warmup_epochs=warmup, **options) == pytest.approx(wanted)


# plans


def test_plan_of_stage1_scales_with_the_batch():
    settings = TrainSettings(batch_size=512, learning_rate=0.3, scale_learning_rate=True, decay_all=True, epochs=7)
    assert settings.stage1().learning_rate == pytest.approx(0.6)
    assert (settings.stage1().decay_all, settings.stage1().epochs, settings.stage2()) == (True, 7, None)
    assert TrainSettings(batch_size=512, learning_rate=0.3).stage1().learning_rate == 0.3


def test_plan_of_stage2_scales_with_its_own_batch():
    options = {"stage2_optimizer": "lars", "stage2_learning_rate": 0.4, "stage2_scale_learning_rate": True}
    assert TrainSettings(batch_size=512, **options).stage2().learning_rate == pytest.approx(0.8)
    own = TrainSettings(batch_size=512, stage2_batch_size=128, clip_gradient_norm=1.0, **options).stage2()
    assert own.learning_rate == pytest.approx(0.2)
    assert (own.optimizer, own.epochs, own.weight_decay, own.clip_gradient_norm) == ("lars", 10, 0.0, None)
