"""Settings from the command line and from YAML."""

import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import NoReturn, get_type_hints

from jsonargparse import ArgumentParser

from pml_supcon.recipes.settings import GROUPS, TrainSettings
from pml_supcon.recipes.settings.fitting import fitted

NAMES = tuple(field.name for field in fields(TrainSettings))
SWITCHES = frozenset(name for name, kind in get_type_hints(TrainSettings).items() if kind is bool)


def parse_settings(arguments: Sequence[str] | None = None) -> TrainSettings:
    """Settings from the command line: flags, and `--config` for a YAML file of the same names.

    A flag may be spelt with dashes (`--max-train`) or underscores, and a switch stands alone (`--resume`) or with a
    value (`--resume=false`). A run that goes on (`--resume --output RUN`) takes the settings in its folder, unless a
    `--config` is given. A `--method` other than the file's leaves alone what it does not have. An error is one line and
    exit status 2.
    """
    parser = _Parser(
        prog="train.py",
        allow_abbrev=False,
        description="Train an encoder, then score it: retrieval and a linear probe.",
    )
    parser.add_argument("--config", action="config", help="a YAML file of settings; later flags override it")
    for group in GROUPS:
        parser.add_class_arguments(group, None)
    given = normalised(sys.argv[1:] if arguments is None else arguments)
    parsed = parser.parse_args(given)
    own = None if parsed.output is None else parsed.output / "config.yaml"
    if parsed.resume and not parsed.config and own is not None and own.is_file():
        parsed = parser.parse_args(["--config", str(own), *given])
    values = {name: parsed[name] for name in NAMES}
    if parsed.config:
        flags = {re.split(r"[=.]", argument.removeprefix("--"))[0] for argument in given if argument.startswith("--")}
        values, vain = fitted(values, flags)
        if vain:
            print(f"train.py: not used with {values['method']}: {', '.join(vain)}", file=sys.stderr)
    try:
        return TrainSettings(**values)
    except ValueError as error:
        parser.error(str(error))


def normalised(arguments: Sequence[str]) -> list[str]:
    """`--max-train=5` as `--max_train=5` and a lone `--resume` as `--resume=true`; values are left alone."""
    flags = [re.sub(r"^--[^=]*", lambda flag: "--" + flag[0][2:].replace("-", "_"), argument) for argument in arguments]
    alone = [after.startswith("--") for after in [*flags, "--"][1:]]
    return [
        f"{flag}=true" if last and flag.removeprefix("--") in SWITCHES and flag.startswith("--") else flag
        for flag, last in zip(flags, alone, strict=True)
    ]


class _Parser(ArgumentParser):
    """A parser whose errors are one line that names the nearest valid name."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        del ex
        print(f"{self.prog}: error: {' '.join(message.split())}{self.nearest(message)}", file=sys.stderr)
        sys.exit(2)

    def nearest(self, message: str) -> str:
        """What an unknown option or value was probably meant to be."""
        unknown = re.search(r"(?:unrecognized arguments: --|Option ')(\w+)", message)
        value = re.search(r"Literal\[(.*?)\]\. Got value: (\S+)", message)
        value = value or re.search(r"Literal\[(.*?)\].* Given value: (\S+)", message, re.S)
        if unknown:
            close = difflib.get_close_matches(unknown[1], NAMES, n=1)
        elif value:
            close = difflib.get_close_matches(value[2], re.findall(r"'(\w+)'", value[1]), n=1)
        else:
            close = []
        return f"; did you mean {close[0]!r}?" if close else ""
