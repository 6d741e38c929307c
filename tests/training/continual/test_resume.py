"""Continual runs that are killed and resumed have the scores of uninterrupted ones, bit for bit."""

import json
import os
import signal
from functools import partial

import pytest
import torch
from helpers.run_processes import Run, die_after, untimed
from safetensors.torch import load_file

from pml_supcon.training.continual import train
from pml_supcon.training.continual.app import main

TINY = ["--data", "digits?classes=0-5", "--num-tasks", "3", "--max-train", "120", "--max-test", "60"]
TINY += ["--batch-size", "20", "--epochs", "2", "--warmup-epochs", "0", "--encoder-args.channels", "[8, 8, 8, 8]"]
TINY += ["--buffer-size", "20", "--save-every", "2", "--keep", "20"]
# Steps 1 to 4 are of task 1, 5 to 10 of task 2, 11 to 16 of task 3.


def results_of(folder):
    """Return what must not depend on kills: accuracies, metrics, losses, and all weights of the last checkpoint."""
    last = sorted((folder / "checkpoints").iterdir())[-1]
    about = json.loads((last / "checkpoint.json").read_text())
    return (
        json.loads((folder / "continual.json").read_text()),
        untimed(json.loads((folder / "metrics.json").read_text())),
        [untimed(json.loads(line)) for line in (folder / "history.jsonl").read_text().splitlines()],
        about["continual"],
        load_file(last / "weights.safetensors"),
    )


def assert_same(one, other):
    *plain, weights = results_of(one)
    *others, other_weights = results_of(other)
    assert plain == others
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(tensor, other_weights[name]) for name, tensor in weights.items())


def die_in_scores(number):
    """Kill this process before the scores of a task, after the last checkpoint of its training."""
    left, score = [number], train.score_tasks

    def score_tasks(*arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return score(*arguments)

    train.score_tasks = score_tasks


def stop_after(steps):
    """Send SIGTERM to this process after this number of steps."""
    die_after_step = die_after(steps, 0)
    os_kill = os.kill
    os.kill = lambda process, number: os_kill(process, signal.SIGTERM)
    return die_after_step


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert Run([*TINY, "--output", folder], main=main).wait() == [0]
    return folder


@pytest.mark.parametrize(
    ("dying", "status", "step"),
    [
        (partial(die_after, 13, 0), -signal.SIGKILL, 12),
        (partial(die_in_scores, 2), -signal.SIGKILL, 10),
        (partial(stop_after, 13), 128 + signal.SIGTERM, 13),
    ],
    ids=["killed-in-task-3", "killed-in-the-scores-of-task-2", "stopped-in-task-3"],
)
def test_a_stop_in_mid_task_changes_nothing(dying, status, step, whole, tmp_path):
    arguments = [*TINY, "--output", tmp_path / "run"]
    assert Run(arguments, before=dying, main=main).wait() == [status]
    assert sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1].name == f"step-{step:08d}"
    assert Run([*arguments, "--resume"], main=main).wait() == [0]
    assert_same(whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "processes"),
    [
        (["--method", "er"], 1),
        (["--method", "supcon_replay", "--optimizer", "adamw", "--ema", "0.9"], 1),
        (["--scenario", "domain", "--num-tasks", "2", "--ema", "0.9"], 1),
        ([], 2),
    ],
    ids=["er", "supcon-replay-ema", "domain-ema", "two-processes"],
)
def test_kills_at_several_steps_change_nothing(options, processes, tmp_path):
    arguments = [*TINY, *options]
    assert Run([*arguments, "--output", tmp_path / "whole"], processes=processes, main=main).wait() == [0] * processes
    resumed = [*arguments, "--output", tmp_path / "killed", "--resume"]
    for steps in (3, 5, 4):
        statuses = Run(resumed, processes=processes, before=partial(die_after, steps, 0), main=main).wait()
        assert -signal.SIGKILL in statuses
    assert Run(resumed, processes=processes, main=main).wait() == [0] * processes
    assert_same(tmp_path / "whole", tmp_path / "killed")
