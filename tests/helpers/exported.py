"""The public names of the packages for losses, rows, inputs and scores."""

import inspect
from importlib import import_module
from typing import Any

import pml_supcon


def exported() -> dict[str, Any]:
    """Return the public functions and classes as ``{"package.name": object}``, in the order of the packages."""
    found = {}
    for package in pml_supcon.__all__:
        module = import_module(f"pml_supcon.{package}")
        found |= {f"{package}.{name}": getattr(module, name) for name in module.__all__}
    return {name: thing for name, thing in found.items() if callable(thing)}


def exported_classes() -> dict[str, Any]:
    """Return the public classes, without protocols, which have no objects."""
    return {
        name: thing
        for name, thing in exported().items()
        if inspect.isclass(thing) and not getattr(thing, "_is_protocol", False)
    }
