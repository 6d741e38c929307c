"""The script that calls all public functions at random, with few calls."""

import logging

import fuzz
import pytest
import torch.distributed as dist
from helpers.exported import exported


@pytest.fixture(autouse=True, scope="module")
def alone():
    """Undo what the script sets for its own process."""
    yield
    logging.disable(logging.NOTSET)
    if dist.is_initialized():
        dist.destroy_process_group()


def test_every_public_function_is_called_or_named_as_left_out():
    names = set(exported())
    assert set(fuzz.LEFT_OUT) <= names
    for name in names - set(fuzz.LEFT_OUT):
        fuzz.Target(name, exported()[name])  # raises for a parameter without a strategy


@pytest.mark.parametrize("name", [name for name in exported() if name not in fuzz.LEFT_OUT])
def test_a_few_calls(name):
    _, counts, _, others = fuzz.fuzz(name, 20)
    assert others == {}
    assert counts["values"] + counts["errors"] == 20


def test_another_outcome_is_found(monkeypatch):
    monkeypatch.setattr(fuzz, "exported", lambda: {"metrics.majority_share": lambda labels: labels.no_such_attribute})
    _, counts, _, others = fuzz.fuzz("metrics.majority_share", 5)
    assert counts["others"] == 5
    assert "AttributeError" in next(iter(others.values()))


def test_a_wrong_value_is_found(monkeypatch):
    monkeypatch.setattr(fuzz, "exported", lambda: {"metrics.majority_share": lambda labels: 1.5})
    _, counts, _, others = fuzz.fuzz("metrics.majority_share", 5)
    assert counts["others"] == 5
    assert "outside [0, 1]: [1.5]" in next(iter(others.values()))
