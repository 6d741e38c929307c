"""The recipe `segmentation.py` runs with every auxiliary loss, learns, and refuses wrong settings in one line."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.process_groups import free_port

RECIPE = Path(__file__).parents[2] / "recipes" / "segmentation.py"


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    return runpy.run_path(str(RECIPE))


@pytest.mark.parametrize("auxiliary", ["none", "pixel", "prototype"])
def test_a_small_run_repeats(recipe, auxiliary):
    settings = recipe["Settings"](auxiliary=auxiliary, train=16, test=8, epochs=1, batch_size=8)
    assert 0 < recipe["train_and_score"](settings) == recipe["train_and_score"](settings) < 1


@pytest.mark.slow
def test_it_learns(recipe):
    untrained, trained = (
        recipe["train_and_score"](recipe["Settings"](auxiliary="pixel", train=320, test=60, epochs=epochs, lr=lr))
        for epochs, lr in ((1, 1e-9), (5, 0.01))
    )
    assert trained > 2 * untrained


def test_an_auxiliary_loss_changes_the_training_and_its_weight_counts(recipe):
    def score(**options):
        return recipe["train_and_score"](recipe["Settings"](train=32, test=8, epochs=8, lr=0.01, **options))

    scores = [score(auxiliary=name, auxiliary_weight=w) for name in ("pixel", "prototype") for w in (0.0, 10.0)]
    assert scores[0] == scores[2]
    assert len({*scores}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--auxiliary", "pixl"], "did you mean 'pixel'?"),
        (["--epochs", "0"], '"epochs": Not of type PositiveInt'),
        (["--auxilary", "pixel"], "did you mean 'auxiliary'?"),
    ],
)
def test_wrong_settings_are_one_line(recipe, arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        recipe["parse"](arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_fewer_canvases_than_a_batch(recipe):
    with pytest.raises(SystemExit, match=r"`train` to be at least 8, a batch for each process, but got 7$"):
        recipe["train_and_score"](recipe["Settings"](train=7, test=8, epochs=1, batch_size=8))


@pytest.mark.slow
def test_two_processes():
    small = ["--train", "32", "--test", "9", "--epochs", "1", "--batch-size", "8", "--auxiliary", "pixel"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port())]
    done = subprocess.run(
        [*command, RECIPE, *small],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    scores = [line for line in done.stdout.splitlines() if line.startswith("mean IoU")]
    assert len(scores) == 1
