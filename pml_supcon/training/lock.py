"""A lock on a folder, for one process at a time."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from pml_supcon._files import check_file

NAME = ".lock"
ATTEMPTS = 100  # each fails only if another process removes the file or the folder in the same moment


class FolderLock:
    """A lock on a folder, which is created if it does not exist. The operating system releases it if a process dies.

    A file in the folder is locked with a POSIX lock, because workers of the data loader do not inherit it and may
    outlive a killed run. The lock ends if this process closes another handle of that file: nothing else opens it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: TextIO | None = None
        self._created: list[Path] = []

    def take(self) -> None:
        """Lock the folder.

        Raises:
            FileExistsError: If another process has locked it.
            OSError: If the folder or the file cannot be created or locked.
        """
        file = self.folder / NAME
        for _ in range(ATTEMPTS):
            created = [each for each in (self.folder, *self.folder.parents) if not each.exists()]
            with suppress(FileNotFoundError):  # the holder has removed the folder that it had created
                self.folder.mkdir(parents=True, exist_ok=True)
                if file.exists():
                    check_file(file)
                held = file.open("a", encoding="utf-8")
                try:
                    fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.path.samestat(os.fstat(held.fileno()), file.stat()):  # not a file that the holder has removed
                        self._held, self._created = held, created
                        return
                except (BlockingIOError, PermissionError) as error:
                    raise FileExistsError(f"{self.folder} is in use by another process ({error})") from error
                finally:
                    if self._held is None:
                        held.close()
        raise OSError(f"{file} could not be locked: other processes remove it all the time")

    def release(self) -> None:
        """Release the lock and remove its file, and the folders that ``take`` created if they are empty."""
        if self._held is None:
            return
        (self.folder / NAME).unlink(missing_ok=True)  # before the release: nobody can lock this file any more
        self._held.close()
        self._held = None
        for folder in self._created:
            with suppress(OSError):
                folder.rmdir()
