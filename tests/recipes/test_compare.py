"""A comparison runs what is missing, goes on with what was killed, and leaves a record of each run."""

import json
from types import SimpleNamespace
from typing import get_args

import pytest

from pml_supcon.recipes import compare
from pml_supcon.recipes.settings.method import Method, Miner
from pml_supcon.recipes.settings.parser import parse_settings
from pml_supcon.recipes.train import main

TINY = ["--max-train", "120", "--max-test", "60", "--batch-size", "60", "--epochs", "1", "--encoder-args.channels"]
TINY += ["[8, 8, 8, 8]", "--head-dim", "16", "--warmup-epochs", "0"]


@pytest.fixture
def commands(monkeypatch):
    """The commands that were run, in this process."""
    given = []

    def run(command):
        given.append(command[2:])
        main(command[2:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(compare, "subprocess", SimpleNamespace(run=run))
    rows = {"simclr": ["--method", "simclr"], "triplet-ohem": ["--method", "triplet", "--miner", "ohem"]}
    monkeypatch.setitem(compare.COMPARISONS, "methods", rows)
    return given


def test_comparison_leaves_records_and_repeats_nothing(commands, tmp_path):
    arguments = [
        "methods",
        "--seeds",
        "3",
        "4",
        "--runs",
        str(tmp_path / "runs"),
        "--records",
        str(tmp_path / "records"),
    ]
    compare.main([*arguments, *TINY])
    found = {path.name: json.loads(path.read_text()) for path in (tmp_path / "records").iterdir()}
    assert set(found) == {f"methods-{row}-seed{seed}.json" for row in ("simclr", "triplet-ohem") for seed in (3, 4)}
    mined = found["methods-triplet-ohem-seed4.json"]
    assert (mined["row"], mined["method"], mined["miner"], mined["seed"]) == ("triplet-ohem", "triplet", "ohem", 4)
    assert mined["miner/triplets"] > 0
    assert mined["miner/seconds"] > 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    compare.main([*arguments, *TINY])
    assert len(commands) == 8
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", compare.COMPARISONS)
def test_rows_are_settings_that_the_recipe_takes(name):
    for _, seed, flags in compare.runs_of(name, [0, 1]):
        assert parse_settings([*flags, "--seed", str(seed)]).seed == seed


def test_all_methods_are_compared():
    assert list(compare.COMPARISONS["methods"]) == list(get_args(Method))
    compared = {parse_settings(flags).miner for flags in compare.COMPARISONS["miners"].values()}
    assert compared == {None, *get_args(Miner)}
