"""Settings from the command line and from YAML."""

import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import get_type_hints

from pml_supcon.training.config import GROUPS, TrainSettings
from pml_supcon.training.config.command_line import OneLineParser, normalised
from pml_supcon.training.config.fitting import fitted

NAMES = tuple(field.name for field in fields(TrainSettings))
SWITCHES = frozenset(name for name, kind in get_type_hints(TrainSettings).items() if kind is bool)


def parse_settings(arguments: Sequence[str] | None = None, *, prog: str = "train.py") -> TrainSettings:
    """Settings from the command line: flags, and `--config` for a YAML file of the same names.

    A flag may be spelt with dashes (`--max-train`) or underscores, and a switch stands alone (`--resume`) or with a
    value (`--resume=false`). A run that goes on (`--resume --output RUN`) takes the settings in its folder, unless a
    `--config` is given. A `--method` other than the file's leaves alone what it does not have. An error is one line and
    exit status 2.
    """
    parser = OneLineParser(
        names=NAMES, prog=prog, description="Train an encoder, then score it: retrieval and a linear probe."
    )
    parser.add_argument("--config", action="config", help="a YAML file of settings; later flags override it")
    for group in GROUPS:
        parser.add_class_arguments(group, None)
    given = normalised(sys.argv[1:] if arguments is None else arguments, SWITCHES)
    parsed = parser.parse_args(given)
    own = None if parsed.output is None else parsed.output / "config.yaml"
    if parsed.resume and not parsed.config and own is not None and own.is_file():
        parsed = parser.parse_args(["--config", str(own), *given])
    values = {name: parsed[name] for name in NAMES}
    if parsed.config:
        flags = {re.split(r"[=.]", argument.removeprefix("--"))[0] for argument in given if argument.startswith("--")}
        values, vain = fitted(values, flags)
        if vain:
            print(f"{prog}: not used with {values['method']}: {', '.join(vain)}", file=sys.stderr)
    try:
        return TrainSettings(**values)
    except ValueError as error:
        parser.error(str(error))
