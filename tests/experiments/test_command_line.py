"""The command line of `reproduce.py`."""

import re
import shlex
from pathlib import Path

import pytest

from pml_supcon.experiments.registry import EXPERIMENTS
from pml_supcon.experiments.settings import as_flags, parse

RECIPE = Path(__file__).parents[2] / "recipes" / "reproduce.py"


def parsed(*arguments):
    return parse(arguments, prog="x", description="x")


def test_flags_of_trainings_change_the_scale_and_the_results_folder():
    settings = parsed("joint", "losses", "--scale", "cifar10-small", "--epochs", "2", "--data=hf:x")
    assert settings.experiments == ("losses", "joint")
    assert settings.given == {"--epochs": "2", "--data": "hf:x"}
    assert (settings.scale.settings["epochs"], settings.scale.settings["data"]) == (2, "hf:x")
    assert settings.seeds == (0, 1, 2)
    assert re.fullmatch(r"runs/reproduce/cifar10-small/results-[0-9a-f]{8}", str(settings.results))
    flags = {"--pretrained": "true", "--encoder_args": '{"channels": [8]}', "--data": "hf:x"}
    assert as_flags({"pretrained": True, "encoder_args": {"channels": [8]}, "data": "hf:x"}) == flags
    plain = parsed("all")
    assert (plain.experiments, plain.results) == (tuple(EXPERIMENTS), Path("runs/reproduce/digits/results"))
    assert parsed("all", "--seeds", *"01234").given == {}
    fewer = parsed("all", "--seeds", "0", "1")
    assert fewer.given == {"--seeds": "0 1"}
    assert fewer.results.name.startswith("results-")  # a quick trial overwrites nothing
    resnet18 = parsed("all", "--encoder", "resnet18").scale.settings
    assert (resnet18["encoder"], resnet18["encoder_args"]) == ("resnet18", {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loses"], "Expected experiments among losses, methods"),
        (["losses", "--seed", "3"], "Expected settings that all trainings can share, but got --seed"),
        (["losses", "--epoch", "3"], "did you mean 'epochs'"),
        (["losses", "--epochs", "1"], "x: error: Expected --warmup_epochs to be at most --epochs=1, but got 2.0"),
        (["--epochs", "1", "losses"], "(before the settings of trainings), but got 1"),
        (["losses", "--epochs", "3", "methods"], "Expected all experiments before the settings of trainings"),
        (["losses", "--seeds", "-1"], "Expected --seeds to be at least 0, but got -1"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parsed(*arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_commands_in_the_recipe_are_valid():
    lines = [line for line in RECIPE.read_text().splitlines() if line.startswith("    ") and "reproduce.py" in line]
    commands = [shlex.split(line, comments=True) for line in lines]
    assert len(commands) >= 5
    for command in commands:
        assert parsed(*command[command.index("recipes/reproduce.py") + 1 :]).experiments
