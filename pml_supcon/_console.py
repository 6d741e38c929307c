"""Output to a console that may lack characters, or be closed."""

import io
import os
import sys
from contextlib import suppress
from typing import TextIO


def escape_unencodable() -> None:
    """Write characters that the encoding of the console lacks as escapes, where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # a pipe in place of a file, by `dup2`, has no position; the errors are set before
                stream.reconfigure(errors="backslashreplace")


def say(text: str, stream: TextIO | None = None) -> None:
    """Print to a stream, by default standard output, and go on if it cannot be written (`| head -1`, a full disk)."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:  # later output, and that at the exit of Python, goes nowhere
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def note(text: object) -> None:
    """Print one line to standard error about a fault that does not end the program."""
    say(f"note: {' '.join(str(text).split())}", sys.stderr)
