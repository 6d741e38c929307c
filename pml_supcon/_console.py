"""Output to a console that may lack characters, or be closed."""

import io
import os
import sys
from contextlib import suppress
from typing import TextIO


def prepare_streams() -> None:
    """Write characters that the console's encoding lacks as escapes, and replace a closed stream by the null device.

    Python would raise for such characters, and libraries for a stream that is None.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller, as by `2>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the end
        elif isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # a pipe in place of a file, by `dup2`, has no position; the errors are set before
                stream.reconfigure(errors="backslashreplace")


def say(text: str, stream: TextIO | None = None) -> None:
    """Print to a stream, by default standard output, and go on if it cannot be written (`| head -1`, a full disk)."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:  # later output goes nowhere, also at the exit of Python
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def note(text: object) -> None:
    """Print one line to standard error about a fault that does not end the program."""
    say(f"note: {' '.join(str(text).split())}", sys.stderr)
