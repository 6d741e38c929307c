"""Checks of plain arguments, in one dialect: "Expected argument `x` to be ..., but got ..."."""

import difflib
import math
import numbers
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the checks use methods of tensors only, so that programs start without PyTorch
    from torch import Tensor

INT64 = (-(2**63), 2**63 - 1)
LARGEST = sys.float_info.max
LEAST_TEMPERATURE = 2.0**-126  # the least normal float32, whose inverse float32 holds


def check_int(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """Return the value as an int; raise unless it is an integer (Python or NumPy) in `[low, high]`.

    A bool is not accepted.

    Raises:
        TypeError: If the value is not an integer.
        ValueError: If the value is out of range, or has more than 64 bits.

    Examples:
        >>> check_int("num_views", 2, low=1)
        2
        >>> check_int("num_views", 0, low=1)
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `num_views` to be at least 1, but got 0
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"Expected argument `{name}` to be an integer, but got {shown(value)}")
    number = int(value)
    if (low is not None and number < low) or (high is not None and number > high):
        raise ValueError(f"Expected argument `{name}` to be {_closed_range(low, high)}, but got {shown(value)}")
    if not INT64[0] <= number <= INT64[1]:
        raise ValueError(f"Expected argument `{name}` to be an integer of 64 bits, but got {shown(value)}")
    return number


def check_number(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    finite: bool = True,
) -> float:
    """Return the value as a float; raise unless it is a real number in `[low, high]` and greater than `above`.

    NaN is never accepted, infinity only with `finite=False`.

    Raises:
        TypeError: If the value is not a number, or is a bool.
        ValueError: If the value is out of range.
    """
    number = _as_float(name, value)
    if finite and not -math.inf < number < math.inf:  # NaN fails too; torch.compile cannot trace `math.isfinite`
        raise ValueError(f"Expected argument `{name}` to be a finite number, but got {shown(value)}")
    in_range = (low is None or number >= low) and (high is None or number <= high)
    if number != number or not in_range or (above is not None and number <= above):
        bounds = [] if low is None and high is None and above is not None else [_closed_range(low, high)]
        bounds += [] if above is None else [f"above {above}"]
        raise ValueError(f"Expected argument `{name}` to be {' and '.join(bounds)}, but got {shown(value)}")
    return number


def check_temperature(name: str, value: Any) -> None:
    """Raise unless the value is a number above 0, and so far above it that similarities over it fit into float32.

    Raises:
        TypeError: If the value is not a number, or is a bool.
        ValueError: If the value is out of range.
    """
    check_number(name, value, above=0)
    check_number(name, value, low=LEAST_TEMPERATURE)


def check_fraction(name: str, value: Any, *, zero: bool = False, one: bool = False) -> float:
    """Return the value as a float; raise unless it is between 0 and 1. `zero` and `one` admit the ends.

    Raises:
        TypeError: If the value is not a number, or is a bool.
        ValueError: If the value is out of range.
    """
    number = _as_float(name, value)
    if not (0 < number < 1 or (zero and number == 0) or (one and number == 1)):
        low, high = "[" if zero else "(", "]" if one else ")"
        raise ValueError(f"Expected argument `{name}` to be in {low}0, 1{high}, but got {shown(value)}")
    return number


def check_bool(name: str, value: Any) -> bool:
    """Return the value as a bool; raise unless it is True or False, of Python or NumPy.

    Raises:
        TypeError: If the value is something else: "False", 0 and empty lists have a truth of their own.

    Examples:
        >>> check_bool("normalize", "False")
        Traceback (most recent call last):
        ...
        TypeError: Expected argument `normalize` to be True or False, but got 'False'
    """
    # NumPy's by its name: `functional`, which calls this, imports torch only
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
        raise TypeError(f"Expected argument `{name}` to be True or False, but got {shown(value)}")
    return bool(value)


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise unless the value is one of the choices; the error suggests the nearest.

    Raises:
        ValueError: If the value is none of the choices.

    Examples:
        >>> check_choice("summation", "oot", ("out", "in"))
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `summation` to be one of ['out', 'in'], but got 'oot'; did you mean 'out'?
    """
    known = list(choices)
    # an array or tensor is compared value by value, and has no single answer
    if not isinstance(value, (str, numbers.Number, type(None))) or value not in known:
        hint = did_you_mean(value, known) if isinstance(value, str) else ""
        raise ValueError(f"Expected argument `{name}` to be one of {known}, but got {shown(value)}{hint}")


def check_type(name: str, value: Any, types: type | tuple[type, ...], expected: str | None = None) -> None:
    """Raise unless the value is an instance of `types`; `expected` describes them in the error ("a torch.Tensor").

    Raises:
        TypeError: If the value has another type.
    """
    if not isinstance(value, types):
        names = [kind.__name__ for kind in (types if isinstance(types, tuple) else (types,))]
        raise TypeError(
            f"Expected argument `{name}` to be {expected or 'of type ' + ' or '.join(names)}, "
            f"but got {type(value).__name__}"
        )


def did_you_mean(value: Any, choices: Iterable[Any], *, number: int = 1, cutoff: float = 0.6) -> str:
    """Return "; did you mean 'x'?" for the nearest of the choices, or an empty string where none is near.

    Examples:
        >>> did_you_mean("resnet5", ["resnet50", "vit"])
        "; did you mean 'resnet50'?"
    """
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=number, cutoff=cutoff)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def check_callable(name: str, value: Any) -> None:
    """Raise unless the value can be called.

    Raises:
        TypeError: If it cannot.
    """
    if not callable(value):
        raise TypeError(f"Expected argument `{name}` to be callable, but got {shown(value)}")


def check_numbers(name: str, values: Any, number: int | None = None, *, above: float | None = None) -> None:
    """Raise unless the values are a list or tuple of finite numbers, ``number`` of them where it is given.

    Raises:
        TypeError: If it is something else, or a value is not a number.
        ValueError: If their number, or one of them, is out of range.
    """
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"Expected argument `{name}` to be a list or tuple of numbers, but got {shown(values)}")
    if number is not None and len(values) != number:
        raise ValueError(f"Expected argument `{name}` to be {number} numbers, but got {shown(values)}")
    for value in values:
        check_number(name, value, above=above)


def check_nested(labels: "Tensor", name: str = "labels") -> None:
    """Raise unless the labels are a tree: each label of a level has one parent, its label of the level before.

    Args:
        labels: ``(n, L)`` integers, a column for each level, coarse to fine.
        name: The argument's name.

    Raises:
        TypeError: If ``labels`` are not integers.
        ValueError: If their shape is another one, or a label has two parents.

    Examples:
        >>> import torch
        >>> check_nested(torch.tensor([[0, 5], [0, 6], [1, 5]]))
        Traceback (most recent call last):
        ...
        ValueError: Expected each label in column 1 of `labels` to have one parent, but label 5 has 0 and 1
    """
    if labels.is_floating_point() or labels.is_complex() or str(labels.dtype) == "torch.bool":
        raise TypeError(f"Expected argument `{name}` to be integers, but got {labels.dtype}")
    if labels.ndim != 2 or not labels.shape[1]:
        raise ValueError(f"Expected argument `{name}` to have the shape (n, L), L >= 1, but got {tuple(labels.shape)}")
    for level in range(1, labels.shape[1]):
        # Sort by the finer label, so that its rows are adjacent: (n - 1,) pairs of neighbours must share the parent.
        parents, children = labels[labels[:, level].argsort()][:, level - 1 : level + 1].T
        broken = (children[1:] == children[:-1]) & (parents[1:] != parents[:-1])
        if broken.any():
            place = int(broken.int().argmax())
            two = sorted(parents[place : place + 2].tolist())
            raise ValueError(
                f"Expected each label in column {level} of `{name}` to have one parent, but label "
                f"{int(children[place])} has {two[0]} and {two[1]}"
            )


def shown(value: Any) -> str:
    """Return a value for an error, on one line and not long; Python writes no integer of thousands of digits."""
    if isinstance(value, numbers.Integral) and not INT64[0] <= int(value) <= INT64[1]:
        return f"an integer of {int(value).bit_length()} bits"
    try:
        text = repr(value)
    except ValueError:  # such an integer is inside
        return f"a {type(value).__name__} with an integer of thousands of digits"
    text = " ".join(text.split()) if "\n" in text or len(text) > 80 else text
    return text if len(text) <= 200 else f"{text[:195]} ..."


def _as_float(name: str, value: Any) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"Expected argument `{name}` to be a number, but got {shown(value)}")
    if isinstance(value, numbers.Rational) and not -LARGEST <= value <= LARGEST:  # type: ignore[operator]
        raise ValueError(f"Expected argument `{name}` to be a finite number, but got one beyond {LARGEST:g} in size")
    return float(value)


def _closed_range(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high}"
    return f"at least {low}" if high is None else f"between {low} and {high}"
