"""Signals and exits: SIGTERM and Ctrl-C end a run at the next step on all processes; errors become one line."""

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from accelerate import PartialState

from pml_supcon._console import say

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def command_of(process: int) -> bytes:
    """Return the command line of a process, or nothing on a system without /proc."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


class Stopped(Exception):  # noqa: N818 - a requested stop is not an error
    """A stop of the run by a signal, after its checkpoint.

    Attributes:
        number: The number of the signal.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class SignalHandler:
    """A context that records SIGTERM and SIGINT instead of ending the process.

    The signal may reach one process or all; ``should_stop`` shares it. Repeated signals change nothing, because
    launchers forward Ctrl-C to processes that already received it. ``accelerate launch`` does not forward SIGTERM to a
    single process: the end of that launcher counts as SIGTERM.
    """

    def __init__(self) -> None:
        self._number = 0
        self._launcher = os.getppid() if b"accelerate" in command_of(os.getppid()) else None
        self._before: dict[int, Any] = {}
        self._group: Any = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            own = "gloo" in str(dist.get_backend())
            self._group = dist.group.WORLD if own else dist.new_group(backend="gloo")  # no GPU synchronisation

    def __enter__(self) -> "SignalHandler":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in no other thread
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._group not in (None, dist.group.WORLD):
            dist.destroy_process_group(self._group)
            self._group = None

    def should_stop(self) -> int:
        """Return the signal that any process has received, 0 for none. A collective: every process must call it."""
        if self._launcher is not None and os.getppid() != self._launcher:
            self._note(signal.SIGTERM, None)
        if self._group is None:
            return self._number
        number = torch.tensor(self._number)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self._group)
        return int(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._number = self._number or number


def exit_with_error(program: str, error: Exception | str, *, status: int = 1) -> NoReturn:
    """Print the error in one line to stderr and exit; processes other than the main one add their rank."""
    text = error.strerror if isinstance(error, OSError) and error.strerror and not error.filename else error
    place = "" if PartialState().is_main_process else f" [process {PartialState().process_index}]"
    say(f"{program}: error:{place} {' '.join(str(text).split())}", sys.stderr)
    sys.exit(status)
