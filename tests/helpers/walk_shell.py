"""The shell of the walk: it runs commands in a clone and keeps their output."""

import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from helpers.walk_checks import expect

ACTIVATE = "source .venv/bin/activate"
#: Variables of the shell or the `make` that starts the walk; the clone must not inherit them.
OF_THIS_CHECKOUT = ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS", "FAISS")


def borrow_packages(clone: Path, python: str) -> None:
    """Create the clone's `.venv` with the clone's package and the other packages of this Python, as `make` would."""
    subprocess.run([python, "-m", "venv", "--without-pip", str(clone / ".venv")], check=True)
    (packages,) = (clone / ".venv").glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(f"{clone}\n{sysconfig.get_path('purelib')}\n")
    scripts = clone / ".venv/bin"
    for script in entry_points(group="console_scripts"):
        if script.name in ("accelerate", "pml-supcon"):
            code = f"#!{scripts / 'python'}\nfrom {script.module} import {script.attr}\n{script.attr}()\n"
            (scripts / script.name).write_text(code)
            (scripts / script.name).chmod(0o755)
    (clone / ".venv/.recipes-cpu").touch()  # make's mark of a finished installation


class Walk:
    """A clone with a shell.

    Args:
        folder: An empty folder for the clone.
        python: The interpreter of the clone's `.venv`.
    """

    def __init__(self, folder: Path, python: str) -> None:
        self.clone, self.log = folder / "clone", folder / "walk.log"
        self.env = {name: value for name, value in os.environ.items() if name not in OF_THIS_CHECKOUT}
        self.env |= {"PYTHON": python, "MPLBACKEND": "agg"}
        self.before: list[dict[str, object]] = []  # steps of a run when it was stopped

    def type(self, command: str, *, activated: bool = True, until: Callable[[], bool] | None = None) -> int:
        """Run a command in a shell, send Ctrl-C once `until` holds, and return the exit status."""
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
        """Run a command and raise a `BrokenError` if it fails."""
        status = self.type(command, activated=activated)
        expect(status == 0, f"status {status}, after\n{self.tail()}")

    def tail(self) -> str:
        """Return the last lines of the output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
