"""The public names of the package's rooms for losses, rows, inputs and scores."""

import inspect
from importlib import import_module
from typing import Any

ROOMS = ("samplers", "views", "models", "functional", "miners", "losses", "search", "metrics", "testers", "corruptions")


def exported() -> dict[str, Any]:
    """Return the public functions and classes as ``{"room.name": object}``, in the order of the rooms."""
    found = {}
    for room in ROOMS:
        module = import_module(f"pml_supcon.{room}")
        found |= {f"{room}.{name}": getattr(module, name) for name in module.__all__}
    return {name: thing for name, thing in found.items() if callable(thing)}


def exported_classes() -> dict[str, Any]:
    """Return the public classes, without protocols, which have no objects."""
    return {
        name: thing
        for name, thing in exported().items()
        if inspect.isclass(thing) and not getattr(thing, "_is_protocol", False)
    }
