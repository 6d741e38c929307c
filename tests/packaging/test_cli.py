"""The console script `pml-supcon`."""

import subprocess
import sys
import sysconfig
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

import pml_supcon
from pml_supcon import cli
from pml_supcon._extras import ENGINES
from pml_supcon.training import environment

RECIPES = ("train", "evaluate", "reproduce")
INSTALLED = Path(pml_supcon.__file__).resolve().parent


def run(*arguments, before):
    """The program in an interpreter of its own, after some statements."""
    program = f"{before}\nfrom pml_supcon.cli import main\nmain()"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def refusal(capsys, *arguments):
    """The one line with which the program ends."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.count("\n") == 1
    return errors


def test_the_console_script_is_this_program():
    script = Path(sysconfig.get_path("scripts")) / "pml-supcon"
    done = subprocess.run([script, "configs", "digits"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).samefile(INSTALLED / "configs" / "digits.yaml")


def test_help_names_all_commands_and_imports_no_torch():
    ask = "import atexit, sys\natexit.register(lambda: print('torch' in sys.modules))"
    done = run("--help", before=ask)
    assert done.returncode == 0
    assert done.stdout.endswith("False\n")
    assert all(f"\n  {name} " in done.stdout for name in (*RECIPES, "configs"))


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"pml-supcon {pml_supcon.__version__}\n"
    assert version("pml-supcon") == pml_supcon.__version__


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_get_the_arguments(name, monkeypatch):
    got = []
    monkeypatch.setattr(import_module(f"pml_supcon.{ENGINES[name]}.app"), "main", got.append)
    cli.main([name, "--help", "runs/mine", "--", "--version"])
    assert got == [["--help", "runs/mine", "--", "--version"]]


def test_train_takes_an_installed_configuration(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--config", str(cli.configurations()["cifar10"]), "--max-train=300", "--print_config"])
    assert ended.value.code == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["max_train"] == 300
    assert settings["encoder"] == "resnet50"


@pytest.mark.slow
def test_accelerate_launches_the_module_outside_the_checkout(tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    launch += ["-m", "pml_supcon.training.app", "--max-train", "300", "--print_config"]
    done = subprocess.run(launch, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["max_train"] == 300


def test_without_the_extra_one_line_names_it():
    done = run("train", "--epochs", "1", before="import sys; sys.modules['accelerate'] = None")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "accelerate" in done.stderr
    assert 'pip install "pml-supcon[recipes]"' in done.stderr


def test_a_mistake_of_the_package_is_not_laid_to_the_extra(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("pml_supcon._extras.import_module", broken)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'pml_supcon\.training\.app'$"):
        cli.main(["train"])


def test_an_unknown_command_names_those_that_are_known(capsys):
    told = refusal(capsys, "evalute", "runs/mine")
    assert "Expected a command of train, evaluate, reproduce, configs, but got 'evalute'" in told
    assert "did you mean 'evaluate'?" in told


def test_configs_lists_every_file_and_finds_each_by_name(capsys):
    files = set((INSTALLED / "configs").rglob("*.yaml"))
    assert len(files) == len({path.stem for path in files}) > 8  # so that a name is that of one file
    cli.main(["configs"])
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert {Path(path) for _, path in listed} == files
    cli.main(["configs", "--help"])
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == listed
    for name, path in listed:
        cli.main(["configs", name])
        assert capsys.readouterr().out == f"{path}\n"
        assert Path(path).stem == name


def test_launch_configurations_are_accelerates():
    several = load_config_from_file(str(cli.configurations()["several_gpus"]))
    assert several.distributed_type == "MULTI_GPU"


def test_configs_refuses_what_it_does_not_have(capsys):
    told = refusal(capsys, "configs", "cifar1")
    assert "but got 'cifar1'; did you mean 'cifar10'?" in told
    assert "several_gpus" in told
    assert "one configuration, but got cifar10 digits" in refusal(capsys, "configs", "cifar10", "digits")


def test_the_commit_of_another_repository_is_not_the_packages(monkeypatch, tmp_path):
    """An environment often lies in the folder of the project that uses it."""
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "environment.py").touch()
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    commit = environment.commit.__wrapped__  # without what was found when the program started
    assert commit() is None
    subprocess.run(["git", "add", "environment.py"], cwd=tmp_path, check=True)
    assert commit().endswith("+")
