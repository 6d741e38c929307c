"""Stand-ins for the commands of the pages: each does what the reader typed, on the CPU and small.

- The recipes run, made small (`small_runs`): by their files or through `pml-supcon`, on one process, or on two over
  gloo if the page asks for several. The launchers' own parsers read the flags. Scripts of the page run unchanged.
- The others are only checked. `pip`: the names and extras exist. `pytest`: the tests exist. `make`: the target exists;
  recipes that it launches run. Scripts of `benchmarks`, `docs` and `tests`: their parsers accept the flags.

`python -m helpers.stand_ins FOLDER` serves them: it imports PyTorch and the recipes once, writes `FOLDER/bin` with a
program for each command, and runs each command in a fork with the folder, environment and streams of the program.
"""

import argparse
import gc
import json
import os
import re
import runpy
import socket
import socketserver
import subprocess
import sys
import tomllib
import traceback
from importlib import import_module
from pathlib import Path

import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from packaging.requirements import Requirement
from torch.distributed.run import get_args_parser

from helpers.process_groups import free_port
from helpers.small_runs import RefusedError, continual_flags, evaluate_flags, reproduce_arguments, train_flags
from pml_supcon import cli
from pml_supcon.evaluation import app as evaluate
from pml_supcon.evaluation.continual import app as continual
from pml_supcon.experiments import app as reproduce
from pml_supcon.training import app as train

CHECKOUT = Path(__file__).parents[2]
CHECKED_ONLY = ("benchmarks", "docs", "tests")
#: Modules that the recipes import during a run; the server imports them once.
USED_LATER = ("docstring_parser", "imagecorruptions", "matplotlib.pyplot", "sklearn.linear_model", "sklearn.manifold")
PROGRAM = """#!{python} -ESs
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = [{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
sys.exit(int(server.recv(16) or b"1"))
"""
RECIPES = {
    "train": lambda arguments, processes: train.main([*arguments, *train_flags(arguments, processes)]),
    "continual": lambda arguments, processes: continual.main([*arguments, *continual_flags(arguments)]),
    "evaluate": lambda arguments, processes: evaluate.main(evaluate_flags(arguments)),
    "reproduce": lambda arguments, processes: reproduce.main(reproduce_arguments(arguments)),
}
#: Flags that make the recipes small that run by their files alone.
SMALL = {"segmentation": ["--train", "32", "--test", "8", "--epochs", "1"]}


def accelerate(arguments):
    """Run a program as `accelerate launch` does."""
    if arguments[:1] != ["launch"]:
        raise RefusedError(f"Expected accelerate launch, but got {arguments[:1]}")
    asked = launch_command_parser().parse_args(arguments[1:])
    config = load_config_from_file(asked.config_file) if asked.config_file else None
    launch(asked.num_processes or (config.num_processes if config else 1), asked)


def torchrun(arguments):
    """Run a program as `torchrun` does."""
    asked = get_args_parser().parse_args(arguments)
    launch(int(asked.nproc_per_node) * int(asked.nnodes.split(":")[-1]), asked)


def launch(processes, asked):
    """Run a program on one process, or on two if more are asked for."""
    program = (asked.module, asked.training_script, asked.training_script_args, processes)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if processes < 2:
        run_program(*program)
        return
    os.environ.update(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    ranks = []
    for rank in ("0", "1"):
        if (child := os.fork()) == 0:
            os.environ.update(RANK=rank, LOCAL_RANK=rank)
            os._exit(exit_status(run_program, *program))
        ranks.append(child)
    sys.exit(max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in ranks))


def python(arguments):
    """Run `python FILE` or `python -m MODULE`."""
    is_module = arguments[0] == "-m"
    run_program(is_module, arguments[is_module], arguments[is_module + 1 :])


def run_program(is_module, name, arguments, processes=1):
    """Run a recipe made small, the parser of a script that is only checked, or a program unchanged."""
    file = Path(name.replace(".", "/") + ".py") if is_module else Path(name)
    if not is_module and not file.is_file():
        raise RefusedError(f"Expected a script, but there is no {name!r}")
    if file.parent.name == "recipes" and file.stem in RECIPES:
        RECIPES[file.stem](arguments, processes)
        return
    if name == "pml_supcon.cli":
        pml_supcon(arguments, processes)
        return
    if file.parts[0] in CHECKED_ONLY:
        argparse.ArgumentParser.parse_args = parse_and_stop
    sys.argv = [name, *arguments, *(SMALL.get(file.stem, ()) if file.parent.name == "recipes" else ())]
    sys.path.insert(0, str(Path.cwd() if is_module else file.resolve().parent))
    if is_module:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(name, run_name="__main__")


def parse_and_stop(parser, arguments=None, namespace=None):
    """End the program once its parser has accepted the flags."""
    _, unknown = parser.parse_known_args(arguments, namespace)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    sys.exit(0)


def pml_supcon(arguments, processes=1):
    """Run `pml-supcon`, its recipes made small."""
    if arguments and arguments[0] in RECIPES:
        RECIPES[arguments[0]](arguments[1:], processes)
    else:
        cli.main(arguments)


def make(arguments):
    """Check that the target exists, and run the recipes that it launches."""
    shown = subprocess.run(["/usr/bin/make", "-n", *arguments], capture_output=True, text=True)
    if shown.returncode:
        raise RefusedError(shown.stderr.strip())
    for line in shown.stdout.splitlines():
        if re.match(r"\.venv/bin/(accelerate|torchrun|pml-supcon|python) .*\brecipes/", line):
            subprocess.run(["bash", "-e", "-c", line.removeprefix(".venv/bin/")], check=True)


def pip(arguments):
    """Check that the project has the extras and declares the packages."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {Requirement(line).name for lines in (project["dependencies"], *extras.values()) for line in lines}
    built = f"dist/{project['name'].replace('-', '_')}-{project['version']}-py3-none-any.whl"
    for text in (argument for argument in arguments[1:] if not argument.startswith("-")):
        wanted = Requirement(re.sub(rf"^(\.|{re.escape(built)})(?=$|\[)", project["name"], text))
        unknown = wanted.extras - set(extras)
        if unknown or wanted.name not in declared | {project["name"]}:
            raise RefusedError(f"Expected a package and extras of pyproject.toml, but got {text!r}")


def pytest(arguments):
    """Check that a test or a file of tests exists."""
    file, _, name = arguments[0].partition("::")
    if not re.search(rf"^def {name}\(" if name else r"^def test_", (CHECKOUT / file).read_text(), re.M):
        raise RefusedError(f"Expected a test, but there is no {arguments[0]!r}")


COMMANDS = {"accelerate": accelerate, "torchrun": torchrun, "python": python, "pml-supcon": pml_supcon, "make": make}
COMMANDS |= {"pip": pip, "pytest": pytest}


def exit_status(command, *arguments):
    """Run a Python function as a program and return its exit status."""
    status = 0
    try:
        command(*arguments)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except RefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


class Answer(socketserver.BaseRequestHandler):
    """The run of one command in a fork."""

    def handle(self):
        request, streams, _, _ = socket.recv_fds(self.request, 1 << 18, 3)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        name, arguments, folder, environment = json.loads(request)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        self.request.sendall(str(exit_status(COMMANDS[name], arguments)).encode())


class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """A server that forks for each command and ends with the tests."""

    tests = os.getppid()

    def service_actions(self):
        super().service_actions()
        if os.getppid() != self.tests:
            os._exit(0)


def serve(folder):
    """Write the programs, then answer them."""
    torch.set_num_threads(1)
    for module in USED_LATER:
        import_module(module)
    gc.freeze()  # collections in the forks need not look at what was imported
    address = str(folder / "socket")
    (folder / "bin").mkdir()
    for name in COMMANDS:
        program = folder / "bin" / name
        program.write_text(PROGRAM.format(python=sys.executable, address=address, name=name))
        program.chmod(0o755)
    Server(address, Answer).serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
