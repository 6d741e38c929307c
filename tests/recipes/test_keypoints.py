"""The recipe `keypoints.py` learns with both losses, for any number of processes, and refuses wrong options."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from accelerate.state import AcceleratorState, PartialState

from pml_supcon import views

RECIPE = Path(__file__).parents[2] / "recipes" / "keypoints.py"


@pytest.fixture(scope="module")
def recipe():
    return runpy.run_path(str(RECIPE))


def test_joints_are_where_they_are_drawn(recipe):
    images, joints = recipe["draw_arms"](300, seed=3)
    assert images.shape == (300, 1, 32, 32)
    assert 0 <= images.min() <= images.max() <= 1
    assert (joints > 0).all() & (joints < 31).all()
    nearest = joints.round().long()
    values = images[torch.arange(300)[:, None], 0, nearest[..., 1], nearest[..., 0]]
    assert values.mean() > 0.5  # on the arm, whose brightness is 0.5 to 1
    swapped = images[torch.arange(300)[:, None], 0, nearest[..., 0], nearest[..., 1]]
    assert swapped.mean() < 0.45
    assert torch.equal(recipe["draw_arms"](300, seed=3)[1], joints)


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 6, 7])
def test_both_loaders_have_equally_many_batches_on_every_process(recipe, processes):
    images = torch.zeros(recipe["UNLABELLED"], 1, 32, 32)
    few, many = (
        views.MultiViewTensorDataset(part, torch.zeros(len(part)), torch.nn.Identity()) for part in (images[:5], images)
    )
    lengths = {
        len(list(BatchSamplerShard(loader.batch_sampler, processes, process)))
        for loader in recipe["loaders_of"](few, many)
        for process in range(processes)
    }
    assert lengths == {16 // processes}


def test_each_process_draws_augmentations_of_its_own(recipe, monkeypatch):
    drawn = []

    def stop_at_loaders(few_data, many_data):
        drawn.append(few_data[0][1])  # the maps of an image's views
        raise InterruptedError

    monkeypatch.setitem(recipe["train"].__globals__, "loaders_of", stop_at_loaders)
    Accelerator()
    for process in (0, 0, 1):
        for state in (PartialState, AcceleratorState):
            monkeypatch.setitem(state._shared_state, "process_index", process)
        with pytest.raises(InterruptedError):
            recipe["train"](1.0, labelled=4, epochs=1, seed=0)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("option", "value", "least"),
    [
        ("labelled", "0", 1),
        ("epochs", "0", 1),
        ("seed", "-1", 0),
        ("consistency_weight", "-0.5", 0),
        ("consistency_weight", "nan", 0),
        ("consistency_weight", "inf", 0),
    ],
)
def test_values_out_of_range_are_one_line(recipe, capsys, option, value, least):
    with pytest.raises(SystemExit) as ended:
        recipe["parse"]([f"--{option}", value])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"keypoints.py: Expected --{option} to be finite and at least {least}, but got {value}"


def test_the_consistency_loss_takes_part_in_training_with_its_weight(recipe, monkeypatch):
    monkeypatch.setitem(recipe["train"].__globals__, "UNLABELLED", 64)
    errors = [recipe["train"](weight, labelled=16, epochs=2, seed=0) for weight in (0.0, 1.0, 1.0)]
    assert errors[0] != errors[1] == errors[2]


@pytest.mark.slow
def test_it_learns(tmp_path):
    command = [sys.executable, RECIPE, "--epochs", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-2]) < 5  # about 7 without training


def test_it_needs_no_engine():
    lines = RECIPE.read_text().splitlines()
    engine = ("data", "training", "evaluation", "experiments")
    assert not [line for line in lines if any(f"pml_supcon.{package}" in line for package in engine)]
