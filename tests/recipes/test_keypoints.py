"""The recipe `keypoints.py` runs, learns with both losses, and stays short."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


@pytest.mark.slow
def test_it_learns(tmp_path):
    command = [sys.executable, RECIPE, "--epochs", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-2]) < 5  # about 7 without training


def test_it_stays_short_and_needs_no_engine():
    lines = RECIPE.read_text().splitlines()
    assert len(lines) <= 150
    engine = ("data", "training", "evaluation", "experiments")
    assert not [line for line in lines if any(f"pml_supcon.{package}" in line for package in engine)]
