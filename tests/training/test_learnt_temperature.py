"""A temperature that is trained with the model: its decay, its average over processes, its record and a resume."""

import json
import signal
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers.run_processes import Run, assert_same, die_after, results_of
from helpers.small_runs import TINY
from torch import nn

from pml_supcon.losses import LearnableTemperature
from pml_supcon.training.config import TrainSettings
from pml_supcon.training.config.settings import OptimizationSettings
from pml_supcon.training.loop import average_gradients
from pml_supcon.training.methods import build_criterion
from pml_supcon.training.optimization import build_optimizer

LEARNT = [*TINY, "--learn-temperature", "--temperature", "0.2", "--pictures", "false", "--epochs", "2"]


def temperatures(folder):
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [row["temperature"] for row in rows if "temperature" in row]


@pytest.mark.parametrize("flags", [[], ["--queue-size", "120", "--clip_gradient_norm", "1"], ["--method", "joint"]])
def test_a_run_learns_the_temperature_and_records_it(flags, tmp_path):
    assert Run([*LEARNT, *flags, "--output", tmp_path / "run"]).wait() == [0]
    found = temperatures(tmp_path / "run")
    assert len(found) == 2
    assert len({0.2, *found}) == 3, "the temperature did not change"
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["train/temperature"] == found[-1]


@pytest.mark.parametrize("everything", [False, True])
def test_the_temperature_has_no_weight_decay(everything):
    criterion = build_criterion(TrainSettings(learn_temperature=True, temperature=0.5))
    [logarithm] = criterion.parameters()
    plan = OptimizationSettings(
        **{"epochs": 1, "optimizer": "sgd", "optimizer_args": {}, "learning_rate": 0.1, "weight_decay": 0.5},
        **{"warmup_epochs": 0, "schedule": "constant", "decay_epochs": [], "decay_rate": 0.1, "decay_all": everything},
    )
    optimizer = build_optimizer(plan, nn.Linear(2, 2), criterion)
    logarithm.grad = torch.zeros_like(logarithm)
    optimizer.step()
    assert criterion.temperature() == pytest.approx(0.5)
    assert build_criterion(TrainSettings()).temperature() is None


def test_gradients_of_the_temperature_are_averaged_over_processes():
    temperature = LearnableTemperature()
    temperature.logarithm.grad = torch.tensor(3.0)
    others = SimpleNamespace(num_processes=2, reduce=lambda gradient, reduction: (gradient + 5) / 2)
    average_gradients(temperature, others)
    assert float(temperature.logarithm.grad) == 4
    average_gradients(temperature, SimpleNamespace(num_processes=1))
    assert float(temperature.logarithm.grad) == 4


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_resumes_with_its_temperature(processes, tmp_path):
    """Processes with different temperatures would end with an error of the loss."""
    arguments = [*LEARNT, "--save-every", "1"]
    assert Run([*arguments, "--output", tmp_path / "whole"], processes=processes).wait() == [0] * processes
    killed = [*arguments, "--output", tmp_path / "killed", "--resume"]
    died = Run(killed, processes=processes, before=partial(die_after, 5, 0)).wait()
    assert -signal.SIGKILL in died
    assert Run(killed, processes=processes).wait() == [0] * processes
    assert_same(results_of(tmp_path / "whole"), results_of(tmp_path / "killed"))
    assert temperatures(tmp_path / "whole") == temperatures(tmp_path / "killed")
