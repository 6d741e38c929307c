"""The check of a saved state of a sampler."""

from collections.abc import Mapping
from typing import Any

from pml_supcon._checks import check_type, shown

#: Settings that older states lack.
DEFAULTS = {"labels_are": "classes", "draw": "uniform", "beta": None}


def check_state(state: Mapping[str, Any], settings: Mapping[str, Any], samples: int) -> None:
    """Raise unless a state is one of a sampler with these settings; the error lists the others.

    Raises:
        TypeError: If ``state`` or its settings are not a mapping.
        ValueError: If ``state`` lacks entries or has other settings.
    """
    check_type("state", state, Mapping, "a mapping")
    if not {"epoch", "batches_done", "settings"} <= set(state):
        raise ValueError(
            f"Expected argument `state` to have epoch, batches_done and settings, but got {shown(list(state))}"
        )
    check_type("state['settings']", state["settings"], Mapping, "a mapping")
    saved = DEFAULTS | dict(state["settings"])
    others = [
        _other_labels(state.get("samples"), samples)
        if name == "labels"
        else f"{name}={saved.get(name)} instead of {value}"
        for name, value in settings.items()
        if saved.get(name) != value
    ]
    if others:
        raise ValueError(f"Expected a state of this sampler's settings, but got {', '.join(others)}")


def _other_labels(then: int | None, now: int) -> str:
    if then in (None, now):
        return f"other labels of the {now} samples"
    return f"labels of {then} samples instead of {now}"
