"""Atomic writes of files."""

import os
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
