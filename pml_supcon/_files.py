"""Kinds of files, and atomic writes."""

import os
import stat
from collections.abc import Callable
from pathlib import Path


def write_atomic(target: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file under a temporary name in the same folder, and rename it: readers get the old file or the new one.

    Args:
        target: The file; its folder exists.
        content: Text (written as UTF-8), bytes, or a function that writes the file at the path it is given. That path
            has the suffix of ``target``.

    Raises:
        OSError: If the file cannot be written; ``target`` is unchanged and the temporary file removed.
    """
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_file(path: Path) -> None:
    """Raise unless the path is a regular file: a read from a named pipe or a device may never end.

    Raises:
        FileNotFoundError: If nothing is there.
        ValueError: If it is something else; the error names it.
    """
    if not path.exists():
        raise FileNotFoundError(f"Expected a file, but there is no {path}")
    if not path.is_file():
        raise ValueError(f"Expected a file, but {path} is {kind_of(path)}")


def kind_of(path: Path) -> str:
    """Return "a file", "a folder", "a named pipe", "a socket" or "a device"."""
    return _KINDS.get(stat.S_IFMT(path.stat().st_mode), "a file")
