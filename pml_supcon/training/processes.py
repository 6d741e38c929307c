"""Work of the main process whose outcome all processes share."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def on_main(function: Callable[[], T]) -> T:
    """Call a function on the main process; return its result, or raise its error, on all processes.

    Without it the other processes would wait in a collective for a main process that has failed.
    """
    result: list[Any] = [None, None]  # the result, and the error
    if PartialState().is_main_process:
        try:
            result[0] = function()
        except (ValueError, TypeError, OSError) as error:
            result[1] = error
    returned, raised = broadcast_object_list(result)
    if raised is not None:
        raise raised
    return returned  # type: ignore[no-any-return]
