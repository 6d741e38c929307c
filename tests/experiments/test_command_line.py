"""The command line of `reproduce.py`."""

import inspect
import re
import shlex
from pathlib import Path

import pytest

from pml_supcon.experiments import app as reproduce
from pml_supcon.experiments.registry import EXPERIMENTS
from pml_supcon.experiments.settings import as_flags, parse


def test_the_command_line(tmp_path):
    settings = parse(
        ["joint", "losses", "--scale", "cifar10-small", "--epochs", "2", "--data=hf:x"], prog="x", description="x"
    )
    assert settings.experiments == ("losses", "joint")
    assert settings.given == {"--epochs": "2", "--data": "hf:x"}
    assert (settings.scale.settings["epochs"], settings.scale.settings["data"]) == (2, "hf:x")
    assert settings.seeds == (0, 1, 2)
    assert re.fullmatch(r"runs/reproduce/cifar10-small/results-[0-9a-f]{8}", str(settings.results))
    assert as_flags({"epochs": 2, "pretrained": True, "encoder_args": {"channels": [8]}, "data": "hf:x"}) == {
        "--epochs": "2",
        "--pretrained": "true",
        "--encoder_args": '{"channels": [8]}',
        "--data": "hf:x",
    }
    assert parse(["all"], prog="x", description="x").results == Path("runs/reproduce/digits/results")
    assert parse(["all", "--seeds", *"01234"], prog="x", description="x").given == {}
    fewer = parse(["all", "--seeds", "0", "1"], prog="x", description="x")
    assert fewer.given == {"--seeds": "0 1"}
    assert fewer.results.name.startswith("results-")  # a quick look replaces nothing
    resnet18 = parse(["all", "--encoder", "resnet18"], prog="x", description="x").scale.settings
    assert (resnet18["encoder"], resnet18["encoder_args"]) == ("resnet18", {})
    assert parse(["all"], prog="x", description="x").experiments == tuple(EXPERIMENTS)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["loses"], "Expected experiments among losses, methods"),
        (["losses", "--scale", "mnist"], "invalid choice: 'mnist'"),
        (["losses", "--seed", "3"], "Expected settings that all trainings can share, but got --seed"),
        (["losses", "--epoch", "3"], "did you mean 'epochs'"),
        (["losses", "--scale", "imagenet", "--warmup-epochs", "351"], "at most --epochs=350, but got 351"),
        (["losses", "--method", "triplet"], "Expected settings that all trainings can share, but got --method"),
        (["losses", "--epochs", "1"], "x: error: Expected --warmup_epochs to be at most --epochs=1, but got 2.0"),
        (["--epochs", "1", "losses"], "(they stand before the settings of trainings), but got 1"),
        (
            ["losses", "--epochs", "3", "methods"],
            "Expected all experiments before the settings of trainings, but got meth",
        ),
        (["losses", "--seeds", "-1"], "Expected --seeds to be at least 0, but got -1"),
    ],
)
def test_a_wrong_command_line_is_told(arguments, told, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(arguments, prog="x", description="x")
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_the_commands_of_the_programs_own_text_are_understood():
    told = inspect.getdoc(reproduce)
    commands = [shlex.split(line, comments=True) for line in told.splitlines() if "recipes/reproduce.py" in line]
    assert len(commands) >= 5
    for command in commands:
        assert parse(command[command.index("recipes/reproduce.py") + 1 :], prog="x", description="x").experiments
    (flags,) = re.findall(r"as `train.py` takes them\s+\(`(.*?)`\)", told)
    assert parse(["all", *flags.split()], prog="x", description="x").given
