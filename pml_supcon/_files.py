"""Kinds of files, and atomic writes of files and of tensors as safetensors."""

import errno
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


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
    try:
        mode = path.stat().st_mode  # once, because another process may remove the file
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"Expected a file, but there is no {path}") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"Expected a file, but {path} is {_KINDS.get(stat.S_IFMT(mode), 'no file')}")


def kind_of(path: Path) -> str:
    """Return "a file", "a folder", "a named pipe", "a socket" or "a device"."""
    return _KINDS.get(stat.S_IFMT(path.stat().st_mode), "a file")


def save_tensors(target: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file as ``write_atomic`` does, with the mode that other new files get.

    Args:
        target: The file; its folder exists.
        tensors: Contiguous tensors without shared memory.
        metadata: Strings for the head of the file.

    Raises:
        OSError: If the file cannot be written; ``target`` is unchanged and the temporary files removed.
    """
    # A folder, because safetensors has temporary files of its own, which a kill would leave without a name of ours.
    partial = target.with_name(f".{target.stem}.{os.getpid()}.partial")
    partial.mkdir(exist_ok=True)
    try:
        written = partial / target.name
        written.touch()
        mode = written.stat().st_mode  # of the umask; safetensors writes files for their owner only
        save_file(dict(tensors), written, metadata=None if metadata is None else dict(metadata))
        written.chmod(mode)
        os.replace(written, target)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, f"{target} could not be written: {os.strerror(number) if found else error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partials(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder; no process may be writing there."""
    for left in folder.glob(".*.partial*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
