"""Comparison of nested records, as JSON holds them, up to the rounding of their numbers."""

import pytest


def assert_close(one, other, *, rel, abs, place="record"):  # named as by `pytest.approx`
    """Assert that two records differ in nothing but floats, and in these within the tolerance."""
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_close(one[key], other[key], rel=rel, abs=abs, place=f"{place}[{key!r}]")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, rel=rel, abs=abs, place=f"{place}[{index}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=rel, abs=abs, nan_ok=True), place
    else:
        assert one == other, place
