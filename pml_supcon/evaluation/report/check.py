"""What an evaluation must hold before it is shown: every key known and there, every value finite and in its range."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Check = Callable[[Any, str], None]
ROUNDING = 1e-6


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number from `low` to `high`, up to rounding."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(_expected(where, "a number", f"{value!r}"))
        if not math.isfinite(value):
            raise ValueError(_expected(where, "finite", f"{value!r}"))
        if not low - ROUNDING <= value <= high + ROUNDING:
            raise ValueError(_expected(where, f"within [{low:g}, {high:g}]", f"{value!r}"))

    return check


def instance(kind: type, name: str) -> Check:
    """A value of a type."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TypeError(_expected(where, name, f"{value!r}"))

    return check


def count(value: Any, where: str) -> None:
    """An integer, 0 or more."""
    instance(int, "an integer")(value, where)
    if value < 0:
        raise ValueError(_expected(where, "0 or more", f"{value!r}"))


def one_of(*texts: str) -> Check:
    """One of some texts."""

    def check(value: Any, where: str) -> None:
        if value not in texts:
            raise ValueError(_expected(where, f"one of {list(texts)}", f"{value!r}"))

    return check


def maybe(check: Check) -> Check:
    """What `check` asks for, or None."""
    return lambda value, where: None if value is None else check(value, where)


def list_of(check: Check, length: int | None = None) -> Check:
    """A list, of `length` items where it is given."""

    def check_list(value: Any, where: str) -> None:
        if not isinstance(value, list | tuple):
            raise TypeError(_expected(where, "a list", type(value).__name__))
        if length is not None and len(value) != length:
            raise ValueError(_expected(where, f"{length} items", f"{len(value)}"))
        for place, item in enumerate(value):
            check(item, f"{where}[{place}]")

    return check_list


def map_of(check: Check, keys: Sequence[str] | None = None) -> Check:
    """A mapping from any names, or from some of `keys`."""

    def check_map(value: Any, where: str) -> None:
        _mapping(value, where)
        for key, item in value.items():
            if not isinstance(key, str) or (keys is not None and key not in keys):
                raise ValueError(_expected(where, f"names among {_few(keys or [])}", f"{key!r}"))
            check(item, f"{where}.{key}")

    return check_map


def fields(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """A mapping with all of the required keys, and no other but the optional ones."""
    known = {**required, **(optional or {})}

    def check_fields(value: Any, where: str) -> None:
        _mapping(value, where)
        unknown = [key for key in value if key not in known]
        missing = [key for key in required if key not in value]
        if unknown or missing:
            faults = [*(f"the unknown key {key!r}" for key in unknown), *(f"no key {key!r}" for key in missing)]
            raise ValueError(_expected(where, f"the keys {list(known)}", ", ".join(faults), verb="have"))
        for key, item in value.items():
            known[key](item, f"{where}.{key}" if where else key)

    return check_fields


def plain(value: Any, where: str) -> None:
    """Any JSON value whose numbers are finite."""
    if isinstance(value, Mapping):
        map_of(plain)(value, where)
    elif isinstance(value, list | tuple):
        list_of(plain)(value, where)
    elif isinstance(value, float):
        number()(value, where)
    elif not (value is None or isinstance(value, str | int)):
        raise TypeError(_expected(where, "a JSON value", f"{value!r}"))


def _mapping(value: Any, where: str) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(_expected(where, "a mapping", type(value).__name__))


def _few(names: Sequence[str]) -> str:
    return f"{list(names)}" if len(names) <= 8 else f"{[*names[:8]]} and {len(names) - 8} more"


def _expected(where: str, wanted: str, got: str, *, verb: str = "be") -> str:
    return f"Expected `{where or 'the evaluation'}` to {verb} {wanted}, but got {got}."
