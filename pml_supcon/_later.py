"""Public names that are imported when they are first used, since what they need takes long to import."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def imported_later(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` (PEP 562) of a package that has some of its names so.

    Args:
        package: its `__name__`.
        modules: the modules of the package that define these names, each with the names.

    Examples:
        >>> find, _ = imported_later("pml_supcon.losses", {"queue": ("QueueLoss",)})
        >>> find("QueueLoss").__name__
        'QueueLoss'
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, found)  # the next use finds it there
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return find, names
