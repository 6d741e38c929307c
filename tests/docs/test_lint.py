"""The checks of pages and records find faults."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def lint(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DOCS), *sys.path])
    return import_module("lint")


def test_unknown_flags_and_missing_paths(lint):
    codes = ["--max-pre-class 8", "make walk ARGS=--instal", "--install", "--max_per_class 8", "make --install"]
    assert len(lint.unknown_flags(codes, {"max_per_class"}, {"make ": {"install"}})) == 3
    paths = ["recipes/trian.py --epochs 2", "recipes/train.py", "my/tests/none"]
    assert lint.missing_paths(paths) == ["recipes/trian.py"]


def test_a_changed_score_is_found(lint, monkeypatch):
    read = json.loads

    def changed(text):
        record = read(text)
        if record.get("experiment") == "losses" and record["scale"] == "digits":
            record["trainings"]["supcon_out"]["scores"]["0"]["linear_probe/top1"] += 0.01
        return record

    monkeypatch.setattr(json, "loads", changed)
    faults = [fault.split(": ")[1] for fault in lint.results()]
    assert faults == ["values differ from the scores", "verdicts differ from the scores"]
