"""Optimizers and schedules: updates computed by hand, learning rates by their formulas."""

import math

import pytest
import torch
from torch import nn

from pml_supcon.training.config import Plan, TrainSettings
from pml_supcon.training.optimization import build_optimizer, build_schedule, check_optimizer

DEFAULTS = {"epochs": 4, "optimizer": "sgd", "optimizer_args": {}, "learning_rate": 0.2, "weight_decay": 0.1}
DEFAULTS |= {"warmup_epochs": 0.0, "schedule": "cosine", "decay_epochs": [], "decay_rate": 0.1}
LARS = {"optimizer": "lars", "optimizer_args": {"momentum": 0.0}}
TRUST = 0.001


def plan(**options):
    return Plan(**DEFAULTS | options)


def model():
    """A weight, its bias, and the scale and shift of a norm."""
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def step_of(options):
    """Weights before and after a step, and gradients, by name."""
    made = model()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
        parameter.grad = torch.randn_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in made.named_parameters()}
    gradients = {name: parameter.grad.clone() for name, parameter in made.named_parameters()}
    build_optimizer(plan(**options), made).step()
    return before, gradients, dict(made.named_parameters())


# optimizers


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("everything", [False, True])
def test_lars_by_hand(decay, everything):
    before, gradients, after = step_of(LARS | {"weight_decay": decay, "decay_all": everything})
    for name, weight in before.items():
        gradient = gradients[name]
        if everything or weight.ndim > 1:  # You et al. (2017): the norm of the weight over that of the gradient
            gradient = gradient + decay * weight
            gradient = gradient * TRUST * weight.norm() / (gradients[name].norm() + decay * weight.norm())
        torch.testing.assert_close(after[name].detach(), weight - 0.2 * gradient, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("everything", [False, True])
def test_sgd_by_hand(everything):
    before, gradients, after = step_of({"optimizer_args": {"momentum": 0.5}, "decay_all": everything})
    for name, weight in before.items():
        gradient = gradients[name] + (0.1 * weight if everything or weight.ndim > 1 else 0)
        torch.testing.assert_close(after[name].detach(), weight - 0.2 * 1.5 * gradient)  # Nesterov, first step


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "rmsprop", "adamw"])
def test_frozen_weights_are_no_part_of_it(optimizer):
    made = model()
    made[0].requires_grad_(False)
    held = [
        parameter
        for group in build_optimizer(plan(optimizer=optimizer), made).param_groups
        for parameter in group["params"]
    ]
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in made[1].parameters()}


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "rmsprop", "adamw"])
def test_every_weight_is_in_one_group(optimizer):
    made = model()
    groups = build_optimizer(plan(optimizer=optimizer), made).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in made.parameters())
    assert all(group["lr"] == 0.2 for group in groups)


def test_arguments_reach_the_optimizer():
    assert build_optimizer(plan(optimizer_args={"momentum": 0.3}), model()).param_groups[0]["momentum"] == 0.3


@pytest.mark.parametrize(
    ("optimizer", "arguments", "message"),
    [
        ("sgd", {"momentun": 0.9}, r"sgd could not be built with \{'momentun': 0.9\}: .*momentun"),
        ("adamw", {"betas": [2.0, 0.9]}, r"adamw could not be built with .*beta"),
        ("lars", {"lr": 3}, "lars could not be built with .*multiple values for keyword argument 'lr'"),
    ],
)
def test_arguments_that_it_does_not_take_are_refused(optimizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(plan(optimizer=optimizer, optimizer_args=arguments), model())


@pytest.mark.parametrize("name", ["sgd", "lars", "rmsprop", "adamw"])
def test_known_optimizers_pass(name):
    check_optimizer(name, "optimizer")


def test_unknown_optimizers_are_refused_by_flag():
    with pytest.raises(ValueError, match="--stage2_optimizer to be one of timm's optimizers, but got 'larz'; did you"):
        check_optimizer("larz", "stage2_optimizer")


# schedules

STEPS = 10  # an epoch


def rates(**options):
    """The learning rate of each of 40 steps, as the loop takes them."""
    chosen = plan(**options)
    optimizer = build_optimizer(chosen, model())
    schedule = build_schedule(chosen, optimizer, STEPS)
    found = []
    for step in range(chosen.epochs * STEPS):
        schedule.step_update(step)
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        found.append(optimizer.param_groups[0]["lr"])
    return found


def formula(step, share):
    """Linear from a hundredth of the peak in warm-up; what follows is counted from the first step."""
    warmup = round(1.5 * STEPS)
    return 0.2 * (0.01 + 0.99 * step / warmup if step < warmup else share(step))


SHARES = {
    "cosine": ({}, lambda step: (1 + math.cos(math.pi * step / 40)) / 2),
    "constant": ({}, lambda step: 1),
    "steps": ({"decay_epochs": [3, 2]}, lambda step: 0.1 ** ((step >= 20) + (step >= 30))),
    "exponential": ({"decay_epochs": [0.5], "decay_rate": 0.9}, lambda step: 0.9 ** (step // 5)),
}


@pytest.mark.parametrize("warmup", [0.0, 1.5])
@pytest.mark.parametrize("schedule", SHARES)
def test_schedule_follows_its_formula(schedule, warmup):
    options, share = SHARES[schedule]
    wanted = [formula(step, share) if warmup else 0.2 * share(step) for step in range(40)]
    assert rates(schedule=schedule, warmup_epochs=warmup, **options) == pytest.approx(wanted)


def test_warm_up_may_last_all_epochs():
    assert rates(warmup_epochs=4.0) == pytest.approx([0.2 * (0.01 + 0.99 * step / 40) for step in range(40)])


def test_decay_between_steps_falls_on_the_nearest():
    found = rates(schedule="steps", decay_epochs=[2.04], decay_rate=0.5)
    assert found == pytest.approx([0.2] * 20 + [0.1] * 20)


# plans


def test_plan_of_stage1_scales_with_the_batch():
    settings = TrainSettings(batch_size=512, learning_rate=0.3, scale_learning_rate=True, decay_all=True, epochs=7)
    assert settings.stage1().learning_rate == pytest.approx(0.6)
    assert settings.stage1().decay_all
    assert settings.stage1().epochs == 7
    assert settings.stage2() is None
    assert TrainSettings(batch_size=512, learning_rate=0.3).stage1().learning_rate == 0.3


def test_plan_of_stage2_scales_with_its_own_batch():
    options = {"stage2_optimizer": "lars", "stage2_learning_rate": 0.4, "stage2_scale_learning_rate": True}
    assert TrainSettings(batch_size=512, **options).stage2().learning_rate == pytest.approx(0.8)
    own = TrainSettings(batch_size=512, stage2_batch_size=128, clip_gradient_norm=1.0, **options).stage2()
    assert own.learning_rate == pytest.approx(0.2)
    assert (own.optimizer, own.epochs, own.weight_decay, own.clip_gradient_norm) == ("lars", 10, 0.0, None)
