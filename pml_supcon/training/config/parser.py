"""The parser of settings from the command line and from YAML."""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from jsonargparse import ArgumentParser

from pml_supcon._checks import did_you_mean
from pml_supcon._console import say
from pml_supcon.training.config import GROUPS, TrainSettings
from pml_supcon.training.config.checks import ONLY_WITH, ONLY_WITH_METHOD, default_of
from pml_supcon.training.config.settings import CLASSIFIER, RunSettings
from pml_supcon.training.config.yaml_files import MODE, read_yaml

Settings = TypeVar("Settings", bound=RunSettings)
NAMES = tuple(field.name for field in fields(TrainSettings))
SWITCHES = frozenset(name for name, kind in get_type_hints(TrainSettings).items() if kind is bool)


def parse_settings(
    arguments: Sequence[str] | None = None, *, prog: str = "train.py", defaults: Mapping[str, Any] | None = None
) -> TrainSettings:
    """Parse settings from flags, and from a YAML file of the same names with ``--config``.

    Flags accept dashes (``--max-train``) or underscores; a switch stands alone (``--resume``) or with a value
    (``--resume=false``). A resumed run (``--resume --output RUN``) uses the settings in its folder, unless
    ``--config`` is given. With another ``--method``, settings of the file that this method does not have return to
    their defaults. An error is one line with exit status 2.

    Args:
        arguments: The arguments; default: ``sys.argv[1:]``.
        prog: The name of the program in messages.
        defaults: Settings that replace the defaults, as a YAML file would.
    """
    return parse_groups(
        TrainSettings,
        GROUPS,
        arguments,
        prog=prog,
        description="Train an encoder, then score it: retrieval and a linear probe.",
        does_not_apply=_does_not_apply,
        defaults=defaults,
    )


def parse_groups(
    kind: type[Settings],
    groups: Sequence[type[Any]],
    arguments: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    does_not_apply: Callable[[str, Mapping[str, Any], Set[str]], bool],
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """Parse settings of any kind, as ``parse_settings`` does.

    Args:
        kind: The class of the settings. It inherits the fields of the groups, and may change their defaults.
        groups: The groups, in the order of ``--help``.
        arguments: The arguments; default: ``sys.argv[1:]``.
        prog: The name of the program in messages.
        description: The first line of ``--help``.
        does_not_apply: A function of a name, all values and the names given by flags: True for a setting of a file that
            returns to its default, see ``drop_inapplicable``.
        defaults: Settings that replace the defaults, as a YAML file would.
    """
    own = {field.name: default_of(field) for field in fields(kind)}
    of_groups = {field.name: default_of(field) for group in groups for field in fields(group)}
    parser = OneLineParser(names=tuple(own), prog=prog, description=description)
    parser.add_argument("--config", action="config", help="a YAML file of settings; later flags override it")
    for group in groups:
        parser.add_class_arguments(group, None)
    parser.set_defaults({name: value for name, value in own.items() if value != of_groups[name]} | dict(defaults or {}))
    switches = frozenset(name for name, hint in get_type_hints(kind).items() if hint is bool)
    given = normalised(sys.argv[1:] if arguments is None else arguments, switches)
    parsed = parser.parse_args(given)
    saved = None if parsed.output is None else parsed.output / "config.yaml"
    if parsed.resume and not parsed.config and saved is not None and saved.exists():
        parser.source = saved
        parsed = parser.parse_args(["--config", str(saved), *given])
    values = {name: parsed[name] for name in own}
    if parsed.config or defaults:
        flags = {re.split(r"[=.]", argument.removeprefix("--"))[0] for argument in given if argument.startswith("--")}
        values, dropped = drop_inapplicable(values, flags, own, does_not_apply)
        if dropped:
            say(f"{prog}: not used with {values['method']}: {', '.join(dropped)}", sys.stderr)
    try:
        return kind(**values)
    except ValueError as error:
        parser.error(str(error))


def normalised(arguments: Sequence[str], switches: Set[str]) -> list[str]:
    """Rewrite ``--max-train=5`` as ``--max_train=5``, and a lone switch ``--resume`` as ``--resume=true``."""
    flags = [re.sub(r"^--[^=]*", lambda flag: "--" + flag[0][2:].replace("-", "_"), argument) for argument in arguments]
    alone = [after.startswith("--") for after in [*flags, "--"][1:]]
    return [
        f"{flag}=true" if last and flag.removeprefix("--") in switches and flag.startswith("--") else flag
        for flag, last in zip(flags, alone, strict=True)
    ]


class OneLineParser(ArgumentParser):
    """A parser whose errors are one line that suggests the nearest of ``names``."""

    def __init__(self, *arguments: Any, names: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*arguments, allow_abbrev=False, parser_mode=MODE, **options)
        self.names = tuple(names)
        self.source: Path | None = None  # the settings of a resumed run

    def parse_args(self, args: Sequence[str], *others: Any, **options: Any) -> Any:  # type: ignore[override]
        """Parse the arguments, after a check of the files that ``--config`` names."""
        words = [part for word in args for part in word.split("=", 1)]
        for flag, file in pairwise(words):
            if flag == "--config" and os.path.exists(file):
                try:
                    if "config" in read_yaml(Path(file)):
                        raise ValueError(f"Expected {file} to hold settings, but it names a config itself")
                except (OSError, ValueError) as error:
                    self.error(str(error))
        return super().parse_args(list(args), *others, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with status 2."""
        del ex
        source = "" if self.source is None else f" (with the settings in {self.source})"
        say(f"{self.prog}: error: {' '.join(message.split())}{self.nearest(message)}{source}", sys.stderr)
        sys.exit(2)

    def nearest(self, message: str) -> str:
        """Return a suggestion for an unknown option or value."""
        unknown = re.search(r"(?:unrecognized arguments: --|Option ')(\w+)", message)
        value = re.search(r"Literal\[(.*?)\]\. Got value: (\S+)", message)
        value = value or re.search(r"Literal\[(.*?)\].* Given value: (\S+)", message, re.S)
        if unknown:
            return did_you_mean(unknown[1], self.names)
        return did_you_mean(value[2], re.findall(r"'(\w+)'", value[1])) if value else ""


def _does_not_apply(name: str, values: Mapping[str, Any], flags: Set[str]) -> bool:
    """Return True if the method or the encoder does not have this setting."""
    method = values["method"]
    if name == "encoder_args":  # arguments of the file's encoder
        return "encoder" in flags
    if name in ONLY_WITH_METHOD and method not in ONLY_WITH_METHOD[name]:
        return True
    if name in ONLY_WITH and ONLY_WITH[name][0] in ONLY_WITH_METHOD:  # it belongs to a setting that belongs to a method
        return _does_not_apply(ONLY_WITH[name][0], values, flags)
    return name.startswith("stage2_") and method in CLASSIFIER


DEFAULTS = {field.name: default_of(field) for field in fields(TrainSettings)}


def drop_inapplicable(
    values: Mapping[str, Any],
    flags: Set[str],
    defaults: Mapping[str, Any] = DEFAULTS,
    does_not_apply: Callable[[str, Mapping[str, Any], Set[str]], bool] = _does_not_apply,
) -> tuple[dict[str, Any], list[str]]:
    """Reset the settings of a file that do not apply to the method or encoder given by flags.

    ``flags`` are names given on the command line; they are kept, and rejected later if they do not apply. Returns the
    settings, and the names of those that were reset to their defaults.
    """
    kept = dict(values)
    for name, value in values.items():
        if name not in flags and value != defaults[name] and does_not_apply(name, kept, flags):
            kept[name] = defaults[name]
    return kept, [name for name, value in values.items() if kept[name] != value]
