"""The command `pml-supcon`: the recipes of an installed package.

    pml-supcon train --data imagefolder:my/images --epochs 100
    pml-supcon evaluate runs/mine
    pml-supcon configs                                        # the configurations that are installed
    pml-supcon train --config "$(pml-supcon configs cifar10)"

`train`, `evaluate` and `reproduce` are the programs of these names in `recipes/`, in one process. Accelerate launches
several, and takes a program as a module:

    accelerate launch --config_file "$(pml-supcon configs several_gpus)" -m pml_supcon.cli train --epochs 100
"""

import argparse
import difflib
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NoReturn

from pml_supcon import __version__
from pml_supcon._extras import require_recipe

COMMANDS = {
    "train": "train an encoder, then score it: retrieval and a linear probe",
    "evaluate": "score a frozen encoder in all the ways of the paper; write a report",
    "reproduce": "repeat the paper's experiments, and say which of its claims hold",
    "configs": "list the configurations, or print the path of the one that is named",
}
FOLDERS = ("configs", "configs/launch")  # for `--config` of train.py, for `--config_file` of accelerate


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a recipe, or tell where a configuration is."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    command, rest = make_parser().parse_args(given[:1]).command, given[1:]  # what follows is the recipe's
    try:
        check_name("a command", command, COMMANDS)
        if command == "configs":
            print(answer(rest))
            return
        recipe = require_recipe(command)
    except ValueError as error:
        fail(error)
    except ImportError as error:
        if error.name is not None:  # of the package itself: its traceback is needed
            raise
        fail(error)
    recipe.main(rest)


def fail(error: Exception) -> NoReturn:
    """End the program with one line."""
    print(f"pml-supcon: error: {error}", file=sys.stderr)
    sys.exit(2)


def make_parser() -> argparse.ArgumentParser:
    """For the first argument alone; nothing heavy is imported for it."""
    told = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="pml-supcon",
        usage="pml-supcon [-h] [--version] COMMAND ...",
        description=f"Supervised contrastive learning: the recipes.\n\ncommands:\n{told}",
        epilog="`pml-supcon COMMAND --help` lists the settings of a recipe.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pml-supcon {__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of the above")
    return parser


def answer(names: Sequence[str]) -> str:
    """The table of the configurations, or the path of the one that is named."""
    known = configurations()
    if not names or names[0] in ("-h", "--help"):
        width = max(map(len, known))
        return "\n".join(f"{name:<{width}}  {path}" for name, path in known.items())
    if len(names) > 1:
        raise ValueError(f"Expected the name of one configuration, but got {' '.join(names)}")
    check_name("a configuration", names[0], known)
    return str(known[names[0]])


def configurations() -> dict[str, Path]:
    """The YAML files that come with the recipes, by name."""
    package = Path(__file__).resolve().parent
    return {path.stem: path for folder in FOLDERS for path in sorted((package / folder).glob("*.yaml"))}


def check_name(what: str, name: str, known: Collection[str]) -> None:
    """Refuse an unknown name with those that are known, and the nearest."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Expected {what} of {', '.join(known)}, but got {name!r}{hint}")


if __name__ == "__main__":
    main()
