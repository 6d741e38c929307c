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
from pml_supcon.training import environment

INSTALLED = Path(pml_supcon.__file__).resolve().parent


def run(*arguments, before):
    """Run the program in a fresh interpreter after some statements."""
    program = f"{before}\nfrom pml_supcon.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", program, *arguments], check=False, capture_output=True, text=True)


def test_the_console_script_is_this_program():
    script = Path(sysconfig.get_path("scripts")) / "pml-supcon"
    done = subprocess.run([script, "configs", "digits"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("pml_supcon/configs/digits.yaml\n")


def test_help_names_all_commands_and_imports_no_torch():
    done = run("--help", before="import atexit, sys\natexit.register(lambda: print('torch' in sys.modules))")
    assert done.returncode == 0
    assert done.stdout.endswith("False\n")
    assert all(f"\n  {name} " in done.stdout for name in (*cli.ENGINES, "configs"))


def test_version_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"pml-supcon {pml_supcon.__version__}\n"
    assert version("pml-supcon") == pml_supcon.__version__


@pytest.mark.parametrize("name", ["train", "continual", "evaluate", "reproduce"])
def test_recipes_get_the_arguments(name, monkeypatch):
    got = []
    monkeypatch.setattr(import_module(f"pml_supcon.{cli.ENGINES[name]}.app"), "main", got.append)
    cli.main([name, "--help", "runs/mine", "--", "--version"])
    assert got == [["--help", "runs/mine", "--", "--version"]]


@pytest.mark.slow
def test_accelerate_launches_the_module_with_an_installed_configuration(tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    launch += ["-m", "pml_supcon.training.app", "--config", str(cli.configurations()["cifar10"])]
    launch += ["--max-train", "300", "--print_config"]
    done = subprocess.run(launch, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings = yaml.safe_load(done.stdout)
    assert (settings["max_train"], settings["encoder"]) == (300, "resnet50")


def test_without_the_extra_one_line_names_it():
    done = run("train", "--epochs", "1", before="import sys; sys.modules['accelerate'] = None")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "accelerate" in done.stderr
    assert 'pip install "pml-supcon[recipes]"' in done.stderr


def test_a_missing_module_of_the_package_is_not_reported_as_a_missing_extra(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(cli, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'pml_supcon\.training\.app'$"):
        cli.main(["train"])


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["evalute", "runs/mine"], ["of train, continual, evaluate, reproduce, configs, but got 'evalute'",
                                    "did you mean 'evaluate'?"]),
        (["configs", "cifar1"], ["but got 'cifar1'; did you mean 'cifar10'?", "several_gpus"]),
        (["configs", "cifar10", "digits"], ["one configuration, but got cifar10 digits"]),
    ],
)  # fmt: skip
def test_a_wrong_command_ends_with_one_line(capsys, arguments, parts):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 1)
    assert all(part in errors for part in parts)


def test_configs_lists_every_file_and_finds_each_by_name(capsys):
    files = set((INSTALLED / "configs").rglob("*.yaml"))
    assert len(files) == len({path.stem for path in files}) > 8  # a name stands for one file
    cli.main(["configs"])
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert {Path(path) for _, path in listed} == files
    for name, path in listed:
        cli.main(["configs", name])
        assert capsys.readouterr().out == f"{path}\n"
        assert Path(path).stem == name
    assert load_config_from_file(str(cli.configurations()["several_gpus"])).distributed_type == "MULTI_GPU"


def test_an_environment_in_another_repository_has_no_commit_of_the_package(monkeypatch, tmp_path):
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "environment.py").touch()
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    commit = environment.commit.__wrapped__  # without the cache
    assert commit() is None
    subprocess.run(["git", "add", "environment.py"], cwd=tmp_path, check=True)
    assert commit().endswith("+")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcntl", "resource"])
@pytest.mark.parametrize("program", ["train", "evaluate", "reproduce"])
def test_a_missing_module_of_python_is_no_matter_of_pip(name, program):
    done = run(program, before=f"import sys; sys.modules[{name!r}] = None")  # as on Windows
    assert (done.returncode, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]  # other packages may warn
    assert line == f"pml-supcon: error: The recipe {program} needs Linux or macOS: this Python has no module {name}"
