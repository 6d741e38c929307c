"""The command ``pml-supcon``: the recipes without a checkout.

    pml-supcon train --data imagefolder:my/images --epochs 100
    pml-supcon evaluate runs/mine
    pml-supcon configs                                        # list the installed configurations
    pml-supcon train --config "$(pml-supcon configs cifar10)"

The first four commands run the programs of ``recipes/`` in one process. For several processes, launch the module with
Accelerate:

    accelerate launch --config_file "$(pml-supcon configs several_gpus)" -m pml_supcon.cli train --epochs 100
"""

import argparse
import sys
from collections.abc import Collection, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from pml_supcon import __version__
from pml_supcon._checks import did_you_mean
from pml_supcon._console import prepare_streams, say

COMMANDS = {
    "train": "train an encoder, then score it: retrieval and a linear probe",
    "continual": "train on tasks that come one after another, and score all of them after each",
    "evaluate": "evaluate a frozen encoder and write an HTML report",
    "reproduce": "run the paper's experiments and test its claims",
    "configs": "list the configurations, or print the path of one",
}
ENGINES = {
    "train": "training",
    "continual": "evaluation.continual",
    "evaluate": "evaluation",
    "reproduce": "experiments",
}
RECIPES_COMMAND = 'pip install "pml-supcon[recipes]"'
FOLDERS = ("configs", "configs/launch")  # for `--config` of train.py, for `--config_file` of accelerate


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a program, or print the paths of configurations."""
    prepare_streams()
    given = sys.argv[1:] if arguments is None else list(arguments)
    command, rest = make_parser().parse_args(given[:1]).command, given[1:]  # the rest belongs to the program
    try:
        check_name("a command", command, COMMANDS)
        if command == "configs":
            say(answer(rest))
            return
        recipe = require_recipe(command)
    except ValueError as error:
        fail(error)
    except ImportError as error:
        if error.name is not None:  # a fault of this package, which needs its traceback
            raise
        fail(error)
    recipe.main(rest)


def require_recipe(name: str) -> ModuleType:
    """Import the program of a command, or raise an ImportError with the install command.

    Args:
        name: The command, such as "train".

    Returns:
        The module, whose ``main`` takes the arguments of a command line.

    Raises:
        ImportError: If something that it needs is not installed or cannot be loaded; the message holds the command
            that installs it.

    Examples:
        >>> callable(require_recipe("train").main)
        True
    """
    try:
        return import_module(f"pml_supcon.{ENGINES[name]}.app")
    except ImportError as error:
        if (error.name or "").startswith("pml_supcon"):  # a fault of this package, not a missing dependency
            raise
        if error.name in sys.stdlib_module_names:  # such as fcntl and resource, which no package index has
            raise ImportError(
                f"The recipe {name} needs Linux or macOS: this Python has no module {error.name}"
            ) from error
        raise ImportError(
            f"The recipe {name} needs packages of which one could not be imported ({error}). Install them with "
            f"{RECIPES_COMMAND}"
        ) from error


def fail(error: Exception) -> NoReturn:
    """Print the error in one line and exit with status 2."""
    say(f"pml-supcon: error: {error}", sys.stderr)
    sys.exit(2)


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of the first argument, without heavy imports."""
    listed = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="pml-supcon",
        usage="pml-supcon [-h] [--version] COMMAND ...",
        description=f"Supervised contrastive learning: the recipes.\n\ncommands:\n{listed}",
        epilog="`pml-supcon COMMAND --help` lists the settings of a recipe.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pml-supcon {__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of the above")
    return parser


def answer(names: Sequence[str]) -> str:
    """Return the table of configurations, or the path of the named one."""
    known = configurations()
    if not names or names[0] in ("-h", "--help"):
        width = max(map(len, known))
        return "\n".join(f"{name:<{width}}  {path}" for name, path in known.items())
    if len(names) > 1:
        raise ValueError(f"Expected the name of one configuration, but got {' '.join(names)}")
    check_name("a configuration", names[0], known)
    return str(known[names[0]])


def configurations() -> dict[str, Path]:
    """Return the paths of the installed YAML files by name."""
    package = Path(__file__).resolve().parent
    return {path.stem: path for folder in FOLDERS for path in sorted((package / folder).glob("*.yaml"))}


def check_name(what: str, name: str, known: Collection[str]) -> None:
    """Raise ValueError for an unknown name; the error lists the known names and suggests the nearest."""
    if name not in known:
        raise ValueError(f"Expected {what} of {', '.join(known)}, but got {name!r}{did_you_mean(name, known)}")


if __name__ == "__main__":
    main()
