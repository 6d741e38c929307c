"""YAML of settings, from files and flags: bounded in size and depth, without aliases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from pml_supcon._files import check_file

MODE = "plain_yaml"  # the name of ``load_plain`` as a loader of jsonargparse
MOST_BYTES = 2**20
MOST_DEPTH = 20  # levels of lists and mappings


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no file (a named pipe, a folder), too large, not UTF-8, not YAML, or no mapping. YAML with
            aliases or more than ``MOST_DEPTH`` levels is refused, because a few lines of it can fill the memory.
    """
    check_file(file)
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"Expected {file} to be YAML of at most {MOST_BYTES} bytes, but it has {size}")
    try:
        read = load_plain(file.read_text(encoding="utf-8"), yaml.safe_load)
    except UnicodeDecodeError as error:
        raise ValueError(f"Expected {file} to be YAML in UTF-8, but it is not: {error.reason}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"Expected {file} to be YAML, but: {error}") from error
    if not isinstance(read, dict):
        kind = "nothing" if read is None else type(read).__name__
        raise ValueError(f"Expected {file} to hold `name: value` lines, but it holds {kind}")
    return read


def load_plain(text: str, load: Callable[[str], Any] | None = None) -> Any:
    """Load YAML with ``load``, by default jsonargparse's loader.

    Raises:
        yaml.YAMLError: If the text is not YAML, or has aliases or more than ``MOST_DEPTH`` levels.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise yaml.YAMLError(f"Expected values in full, but got the alias *{event.anchor}")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH:
                raise yaml.YAMLError(f"Expected at most {MOST_DEPTH} levels of lists and mappings, but got more")
        return (load or jsonargparse.get_loader("yaml"))(text)
    except (ValueError, OverflowError) as error:  # a number or date that Python does not have
        raise yaml.YAMLError(str(error)) from error


jsonargparse.set_loader(MODE, lambda text: load_plain(text), exceptions=(yaml.YAMLError,))
