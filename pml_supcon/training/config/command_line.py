"""What the command lines of the recipes have in common."""

import difflib
import re
import sys
from collections.abc import Sequence, Set
from typing import Any, NoReturn

from jsonargparse import ArgumentParser


def normalised(arguments: Sequence[str], switches: Set[str]) -> list[str]:
    """`--max-train=5` as `--max_train=5` and a lone switch `--resume` as `--resume=true`; values are left alone."""
    flags = [re.sub(r"^--[^=]*", lambda flag: "--" + flag[0][2:].replace("-", "_"), argument) for argument in arguments]
    alone = [after.startswith("--") for after in [*flags, "--"][1:]]
    return [
        f"{flag}=true" if last and flag.removeprefix("--") in switches and flag.startswith("--") else flag
        for flag, last in zip(flags, alone, strict=True)
    ]


class OneLineParser(ArgumentParser):
    """A parser whose errors are one line that names the nearest valid name.

    Args:
        *arguments: as for `ArgumentParser`.
        names: of the settings.
        **options: as for `ArgumentParser`.
    """

    def __init__(self, *arguments: Any, names: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*arguments, allow_abbrev=False, **options)
        self.names = tuple(names)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with status 2."""
        del ex
        print(f"{self.prog}: error: {' '.join(message.split())}{self.nearest(message)}", file=sys.stderr)
        sys.exit(2)

    def nearest(self, message: str) -> str:
        """What an unknown option or value was probably meant to be."""
        unknown = re.search(r"(?:unrecognized arguments: --|Option ')(\w+)", message)
        value = re.search(r"Literal\[(.*?)\]\. Got value: (\S+)", message)
        value = value or re.search(r"Literal\[(.*?)\].* Given value: (\S+)", message, re.S)
        if unknown:
            close = difflib.get_close_matches(unknown[1], self.names, n=1)
        elif value:
            close = difflib.get_close_matches(value[2], re.findall(r"'(\w+)'", value[1]), n=1)
        else:
            close = []
        return f"; did you mean {close[0]!r}?" if close else ""
