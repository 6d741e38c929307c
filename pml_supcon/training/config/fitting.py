"""A file of settings for another method: what the chosen one does not have falls back to its default."""

from collections.abc import Mapping, Set
from dataclasses import fields
from typing import Any

from pml_supcon.training.config import TrainSettings
from pml_supcon.training.config.checks import ONLY_WITH, ONLY_WITH_METHOD, default_of
from pml_supcon.training.config.method import CLASSIFIER

DEFAULTS = {field.name: default_of(field) for field in fields(TrainSettings)}


def fitted(values: Mapping[str, Any], flags: Set[str]) -> tuple[dict[str, Any], list[str]]:
    """Settings of a file under flags that change its method or its encoder.

    Args:
        values: all settings, by name.
        flags: names that were given on the command line; these are left alone, and refused where they do not fit.

    Returns:
        The settings, and the names of those that the file has in vain.
    """
    kept = dict(values)
    for name, value in values.items():
        if name not in flags and value != DEFAULTS[name] and _is_foreign(name, kept, flags):
            kept[name] = DEFAULTS[name]
    return kept, [name for name, value in values.items() if kept[name] != value]


def _is_foreign(name: str, values: Mapping[str, Any], flags: Set[str]) -> bool:
    """Whether the method, or the encoder, has no such setting."""
    method = values["method"]
    if name == "encoder_args":  # those of the file's own encoder
        return "encoder" in flags
    if name in ONLY_WITH_METHOD and method not in ONLY_WITH_METHOD[name]:
        return True
    if name in ONLY_WITH and ONLY_WITH[name][0] in ONLY_WITH_METHOD:  # it belongs to a setting that belongs to a method
        return _is_foreign(ONLY_WITH[name][0], values, flags)
    return name.startswith("stage2_") and method in CLASSIFIER
