"""What the commands of the docs do in the tests: as the user typed them, on the CPU, and small.

Run whole, made small (`small_runs`): the recipes, by their files or through `pml-supcon`, on one process or, where
several are asked for, on two over gloo (of `reproduce.py` one experiment). The launcher's own parser reads its flags,
and its configuration file is opened; GPUs, machines and restarts are not there. A script of the page's own runs as it
stands.

Checked only: `pip` (names and extras exist: the environment is not to change), `pytest` (the tests can be collected:
they run anyway), `make` (the target exists; what it launches of the recipes is run as above: the rest takes minutes),
scripts of `benchmarks`, `docs` and `tests` (their parsers read the flags: they measure for half an hour, or write the
pages).
"""

import argparse
import os
import re
import runpy
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from packaging.requirements import InvalidRequirement, Requirement
from torch.distributed.run import get_args_parser

from helpers.command_server import status_of
from helpers.process_groups import free_port
from helpers.small_runs import RefusedError, evaluate_flags, reproduce_arguments, train_flags
from pml_supcon import cli
from pml_supcon.evaluation import app as evaluate
from pml_supcon.experiments import app as reproduce
from pml_supcon.training import app as train

CHECKOUT = Path(__file__).parents[2]
CHECKED_ONLY = ("benchmarks", "docs", "tests")


def run_train(arguments, processes=1):
    """`train.py`, made small."""
    train.main([*arguments, *train_flags(arguments, processes)])


def run_evaluate(arguments, processes=1):
    """`evaluate.py`, made small."""
    evaluate.main(evaluate_flags(arguments))


def run_reproduce(arguments, processes=1):
    """`reproduce.py`, made small."""
    reproduce.main(reproduce_arguments(arguments))


RECIPES = {"train": run_train, "evaluate": run_evaluate, "reproduce": run_reproduce}


def accelerate(arguments):
    """`accelerate launch`."""
    if arguments[:1] != ["launch"]:
        raise RefusedError(f"Expected accelerate launch, but got {arguments[:1]}")
    asked = launch_command_parser().parse_args(arguments[1:])
    told = None if asked.config_file is None else load_config_from_file(asked.config_file)
    processes = asked.num_processes or (told.num_processes if told else 1)
    in_processes(processes, script, asked.module, asked.training_script, asked.training_script_args, processes)


def torchrun(arguments):
    """`torchrun`."""
    asked = get_args_parser().parse_args(arguments)
    each = int(asked.nproc_per_node) if asked.nproc_per_node.isdecimal() else 2  # `gpu`, `auto`
    processes = each * int(asked.nnodes.split(":")[-1])
    in_processes(processes, script, asked.module, asked.training_script, asked.training_script_args, processes)


def python(arguments):
    """`python FILE`, `python -m MODULE`, `python -c CODE`, `python -` or `python` with code on its input."""
    if arguments[:1] in (["-V"], ["--version"]):
        print(sys.version)
    elif arguments[:1] == ["-c"]:
        sys.argv = arguments[1:]
        exec(compile(arguments[1], "-c", "exec"), {"__name__": "__main__"})
    elif arguments in ([], ["-"]):
        exec(compile(sys.stdin.read(), "stdin", "exec"), {"__name__": "__main__"})
    elif arguments[0] == "-m" and arguments[1] in COMMANDS:
        COMMANDS[arguments[1]](arguments[2:])
    elif arguments[0].startswith("-") and arguments[0] != "-m":
        raise RefusedError(f"Expected a script, -m or -c, but got {arguments[0]!r}")
    else:
        module = arguments[0] == "-m"
        script(module, arguments[module], arguments[module + 1 :])


def script(is_module, name, arguments, processes=1):
    """A Python program: a recipe made small, one that is checked only, or the page's own; on so many processes."""
    file = Path(name.replace(".", "/") + ".py") if is_module else Path(name)
    if not is_module and not file.is_file():
        raise RefusedError(f"Expected a script that is there, but got {name!r}")
    if file.parent.name == "recipes" and file.stem in RECIPES:
        RECIPES[file.stem](arguments, processes)
        return
    if file.parts[0] in CHECKED_ONLY:
        stop_after_parsing()
    sys.argv = [name, *arguments]
    sys.path.insert(0, str(Path.cwd() if is_module else file.resolve().parent))
    if is_module:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(file), run_name="__main__")


def stop_after_parsing():
    """From here on a program ends where its parser has read the flags."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *arguments, **options):
        parse(self, *arguments, **options)
        sys.exit(0)

    argparse.ArgumentParser.parse_args = parse_and_stop


def in_processes(number, function, *arguments):
    """Call a function on one CPU process, or on two where more are asked for."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    if number < 2:
        function(*arguments)
        return
    os.environ.update(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    started = [start(_as_rank, rank, function, *arguments) for rank in range(2)]
    sys.exit(max(map(status_of_process, started)))


def _as_rank(rank, function, *arguments):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    function(*arguments)


def start(function, *arguments):
    """Call a function in a process of its own; the process's number."""
    sys.stdout.flush()
    number = os.fork()
    if number == 0:
        os._exit(status_of(function, *arguments))
    return number


def status_of_process(number):
    """The exit status of a process, when it has ended."""
    return abs(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))


def pml_supcon(arguments):
    """`pml-supcon`: a recipe, or whatever else it answers."""
    if arguments[:1] and arguments[0] in cli.COMMANDS and arguments[0] in RECIPES:
        RECIPES[arguments[0]](arguments[1:])
    else:
        cli.main(arguments)


def make(arguments):
    """`make`: the target exists; what it launches of the recipes is run."""
    shown = subprocess.run(["/usr/bin/make", "-n", *arguments], capture_output=True, text=True)
    if shown.returncode:
        raise RefusedError(shown.stderr.strip())
    for line in shown.stdout.splitlines():
        if re.match(r"\.venv/bin/(accelerate|torchrun|pml-supcon|python) .*\brecipes/", line):
            subprocess.run(["bash", "-e", "-c", line.removeprefix(".venv/bin/")], check=True)


def pip(arguments):
    """`pip install`: our extras and the names of others exist."""
    parser = argparse.ArgumentParser("pip install", allow_abbrev=False)
    parser.add_argument("command", choices=["install", "uninstall"])
    parser.add_argument("wanted", nargs="*")
    parser.add_argument("-e", "--editable", action="append", default=[])
    for flag in ("-U --upgrade", "-q --quiet", "-y --yes", "--no-deps", "--force-reinstall"):
        parser.add_argument(*flag.split(), action="store_true")
    asked = parser.parse_intermixed_args(arguments)  # flags may stand between names
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    for requirement in (*asked.wanted, *asked.editable):
        check_requirement(requirement, project)


def check_requirement(text, project):
    """Refuse an extra that we do not have, and a package that is neither declared, nor installed, nor asked for."""
    extras = project["optional-dependencies"]
    stem = f"{project['name'].replace('-', '_')}-{project['version']}"
    built = f"{re.escape(f'dist/{stem}-py3-none-any.whl')}|{re.escape(f'dist/{stem}.tar.gz')}"
    named = re.sub(rf"^(?:\.|{built})(?=$|\[)", project["name"], text)
    try:
        wanted = Requirement(named)
    except InvalidRequirement as error:
        raise RefusedError(f"Expected a requirement, but got {text!r}: {error}") from None
    if wanted.name.replace("_", "-") == project["name"]:
        unknown = sorted(wanted.extras - set(extras))
        if unknown:
            raise RefusedError(f"Expected extras among {', '.join(extras)}, but got {', '.join(unknown)}")
        return
    known = {Requirement(line).name for lines in (project["dependencies"], *extras.values()) for line in lines}
    for each in metadata.distributions():
        known |= {each.name} | {Requirement(line).name for line in each.requires or ()}
    if wanted.name not in known:
        raise RefusedError(f"Expected a package that the project knows, but got {wanted.name!r}")


def collect(arguments):
    """`pytest`: there are such tests."""
    os.chdir(CHECKOUT)
    sys.exit(int(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *arguments])))


def xdg_open(arguments):
    """`xdg-open`: the file is there."""
    if not Path(arguments[0]).is_file():
        raise RefusedError(f"Expected a file that is there, but got {arguments[0]!r}")


def _completed(name, command):
    """A command whose refusals are a line and a status, as a program's are."""

    def run(arguments):
        try:
            command(arguments)
        except (RefusedError, FileNotFoundError, subprocess.CalledProcessError) as error:
            print(f"{name}: error: {error}", file=sys.stderr)
            sys.exit(2)

    return run


_BY_NAME = {"accelerate": accelerate, "torchrun": torchrun, "python": python, "python3": python, "make": make}
_BY_NAME |= {"pip": pip, "pytest": collect, "pml-supcon": pml_supcon, "xdg-open": xdg_open}
COMMANDS = {name: _completed(name, command) for name, command in _BY_NAME.items()}
