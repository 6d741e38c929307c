"""How a recipe ends when it cannot go on."""

import sys
from typing import NoReturn

from accelerate import PartialState


def fail(program: str, error: Exception | str, *, status: int = 1) -> NoReturn:
    """End the program with one line, from every process that has something to say.

    Args:
        program: its name.
        error: what is wrong.
        status: the exit status.
    """
    said = error.strerror if isinstance(error, OSError) and error.strerror and not error.filename else error
    place = "" if PartialState().is_main_process else f" [process {PartialState().process_index}]"
    print(f"{program}: error:{place} {' '.join(str(said).split())}", file=sys.stderr)
    sys.exit(status)
