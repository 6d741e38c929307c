"""The argument checks: accepted values, error types and error texts."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from pml_supcon import _checks as checks


def test_accepted_values_are_returned():
    assert checks.check_int("n", np.int64(3), low=1, high=3) == 3
    assert checks.check_number("x", np.float32(0.5), 0, 1, above=0) == 0.5
    assert checks.check_number("x", math.inf, above=0, finite=False) == math.inf
    assert checks.check_fraction("f", 1, one=True) == 1
    assert checks.check_fraction("f", 0, zero=True) == 0
    checks.check_choice("c", "a", {"a": 1})
    checks.check_type("t", 1, (int, str))


@pytest.mark.parametrize("check", [checks.check_int, checks.check_number, checks.check_fraction])
@pytest.mark.parametrize("value", [True, "1", None])
def test_another_type_is_a_type_error(check, value):
    with pytest.raises(TypeError, match=f"Expected argument `x` to be an? (integer|number), but got {value!r}"):
        check("x", value)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: checks.check_int("n", 0, low=1), "`n` to be at least 1, but got 0"),
        (lambda: checks.check_int("n", 4, low=1, high=3), "`n` to be between 1 and 3, but got 4"),
        (lambda: checks.check_number("x", math.nan), "`x` to be a finite number, but got nan"),
        (lambda: checks.check_number("x", math.nan, above=0, finite=False), "`x` to be above 0, but got nan"),
        (lambda: checks.check_number("x", math.inf), "`x` to be a finite number, but got inf"),
        (lambda: checks.check_number("x", 0, above=0), "`x` to be above 0, but got 0"),
        (lambda: checks.check_number("x", 2, 0, 1), "`x` to be between 0 and 1, but got 2"),
        (lambda: checks.check_fraction("f", 0, one=True), r"`f` to be in \(0, 1\], but got 0"),
        (lambda: checks.check_fraction("f", math.nan, zero=True), r"`f` to be in \[0, 1\), but got nan"),
        (lambda: checks.check_choice("c", "ot", ["out", "in"]), r"\['out', 'in'\], but got 'ot'; did you mean 'out'\?"),
        (lambda: checks.check_choice("c", [], ["out"]), r"one of \['out'\], but got \[\]$"),
    ],
)
def test_a_value_out_of_range_is_a_value_error(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize("value", ["", "False", 0, 1.0, None, [], torch.tensor(True), torch.empty(0), np.array([])])
def test_a_switch_is_true_or_false(value):
    assert [checks.check_bool("s", given) for given in (True, False, np.True_)] == [True, False, True]
    with pytest.raises(TypeError, match="Expected argument `s` to be True or False, but got "):
        checks.check_bool("s", value)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30, 10**5000], ids=["2^63", "-2^63-1", "10^30", "10^5000"])
def test_integers_have_64_bits(value):
    with pytest.raises(ValueError, match=f"`n` to be an integer of 64 bits, but got .* {value.bit_length()} bits"):
        checks.check_int("n", value)
    with pytest.raises(ValueError, match=r"`c` to be one of .*, but got an integer of"):
        checks.check_choice("c", value, [1, 2])
    assert checks.check_int("n", 2**63 - 1) == 2**63 - 1


@pytest.mark.parametrize("value", [10**400, Fraction(-(10**400))], ids=["int", "fraction"])
def test_a_number_fits_a_float(value):
    with pytest.raises(ValueError, match="`x` to be a finite number, but got one beyond"):
        checks.check_number("x", value, finite=False)


@pytest.mark.parametrize("value", [np.array([1, 2]), torch.tensor([1, 2]), torch.empty(0), np.array(["out", "in"])])
def test_an_array_is_no_choice(value):
    with pytest.raises(ValueError, match="`c` to be one of"):
        checks.check_choice("c", value, ["out", 1])


def test_numbers_are_a_list_of_numbers():
    checks.check_numbers("m", (0.5, 1), 2)
    for error, value in [(TypeError, "12"), (TypeError, [None] * 2), (ValueError, [1.0]), (ValueError, [0, math.nan])]:
        with pytest.raises(error, match="`m` to be"):
            checks.check_numbers("m", value, 2)


def test_a_wrong_type_is_described():
    with pytest.raises(TypeError, match="`t` to be of type int or str, but got list"):
        checks.check_type("t", [], (int, str))
    with pytest.raises(TypeError, match="`t` to be a number of rows, but got list"):
        checks.check_type("t", [], int, "a number of rows")


@pytest.mark.parametrize("value", [[10**5000], Fraction(1, 10**5000), {1: 10**5000}], ids=["list", "fraction", "dict"])
def test_an_integer_inside_a_value_is_not_written(value):
    assert checks.shown(value) == f"a {type(value).__name__} with an integer of thousands of digits"
    with pytest.raises(
        (TypeError, ValueError), match=r"`x` to be .*, but got a .* with an integer of thousands of digit"
    ):
        checks.check_number("x", value, above=0)


@pytest.mark.parametrize("value", ["x" * 1000, "x y " * 1000, list(range(1000)), np.zeros((100, 100)), "a\nb" * 1000])
def test_a_long_value_is_shortened_to_one_line(value):
    assert checks.shown("x" * 80) == repr("x" * 80)
    text = checks.shown(value)
    assert text[:8] == repr(value)[:8]
    assert text.endswith(" ...")
    assert "\n" not in text
    assert len(text) < 200


def test_a_temperature_has_an_inverse_in_float32():
    for value in (checks.LEAST_TEMPERATURE, 0.1, np.float32(1)):
        checks.check_temperature("t", value)
    for value, text in (
        (0, "above 0, but got 0"),
        (5e-324, "at least 1.17.*e-38, but got 5e-324"),
        (1e-38, "at least"),
    ):
        with pytest.raises(ValueError, match=f"`t` to be {text}"):
            checks.check_temperature("t", value)


def random_tree(rng, *, levels):
    """Return `(60, levels)` labels, coarse to fine; columns are numbered at random."""
    columns = [rng.integers(3, size=60)]
    for _ in range(levels - 1):
        columns.append(columns[-1] * 3 + rng.integers(3, size=60))
    return np.stack([rng.permutation(1000)[column] - 500 for column in columns], axis=1)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_a_tree_is_nested_and_one_wrong_parent_is_found(dtype):
    rng = np.random.default_rng(0)
    for levels in (1, 2, 4):
        tree = random_tree(rng, levels=levels)
        checks.check_nested(torch.tensor(tree, dtype=dtype))
        for level in range(1, levels):
            wrong = tree.copy()
            values, counts = np.unique(wrong[:, level], return_counts=True)
            label = values[counts.argmax()]  # of two rows or more
            row = rng.choice(np.flatnonzero(wrong[:, level] == label))
            parent = wrong[row, level - 1]
            new = 777 * (1 if levels == 2 else -1)  # a new label, so that its own parent is right
            wrong[row, level - 1] = new
            low, high = sorted((parent, new))
            text = f"column {level} of `labels` to have one parent, but label {label} has {low} and {high}"
            with pytest.raises(ValueError, match=text):
                checks.check_nested(torch.tensor(wrong, dtype=dtype))


@pytest.mark.parametrize("shape", [(), (3,), (3, 0), (2, 2, 2)])
def test_a_tree_has_rows_and_levels(shape):
    checks.check_nested(torch.zeros(0, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"`labels` to have the shape \(n, L\), L >= 1, but got \("):
        checks.check_nested(torch.zeros(shape, dtype=torch.int64))
    for dtype in (torch.bool, torch.float32, torch.complex64):
        with pytest.raises(TypeError, match=f"`labels` to be integers, but got {dtype}"):
            checks.check_nested(torch.zeros(3, 2, dtype=dtype))
