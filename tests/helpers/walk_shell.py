"""The shell of the walk: what is typed in a clone, and what it prints."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from helpers.walk_checks import expect

ACTIVATE = "source .venv/bin/activate"


class Walk:
    """A clone, and what is typed in it.

    Args:
        folder: an empty folder for the clone.
        python: the interpreter that `make` makes `.venv` of.
    """

    def __init__(self, folder: Path, python: str) -> None:
        self.clone, self.log = folder / "clone", folder / "walk.log"
        self.env = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
        self.env |= {"PYTHON": python, "MPLBACKEND": "agg"}
        self.before: list[dict[str, object]] = []  # steps of a run when it was stopped

    def type(self, command: str, *, activated: bool = True, until: Callable[[], bool] | None = None) -> int:
        """Run a command as in a shell, with Ctrl-C where `until` holds; returns its status."""
        line = f"{ACTIVATE}\n{command}" if activated else command
        with self.log.open("a") as log:
            log.write(f"\n$ {command}\n")
            log.flush()
            shell = ["bash", "-e", "-c", line]
            typed = subprocess.Popen(
                shell, cwd=self.clone, env=self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, process_group=0
            )
            try:
                while until is not None and typed.poll() is None and not until():
                    time.sleep(0.01)
                if until is not None and typed.poll() is None:
                    os.killpg(typed.pid, signal.SIGINT)
                return typed.wait()
            except BaseException:
                os.killpg(typed.pid, signal.SIGTERM)
                raise

    def type_well(self, command: str, *, activated: bool = True) -> None:
        """Run a command that must succeed."""
        status = self.type(command, activated=activated)
        expect(status == 0, f"status {status}, after\n{self.tail()}")

    def tail(self) -> str:
        """The last lines that were printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
