"""`make` keeps one FAISS and one Python in `.venv`, and installs only what is not there yet."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A stand-in for Python: it answers what make asks, and logs the arguments of pip. Its kind is the name of its file.
PYTHON = """#!/bin/sh
kind=NAME
case "$*" in
    *version_info*) test $kind != old || { echo "make: expected Python 3.11 or newer" >&2; exit 1; } ;;
    *base_prefix*) echo $kind ;;
    *"-m venv"*) mkdir -p $3/bin && cp "$0" $3/bin/python && cp "$0" $3/bin/accelerate && test $kind != broken ;;
    *" show faiss-gpu") test -e .venv/faiss-gpu ;;
    *" show faiss-cpu") test -e .venv/faiss-cpu ;;
    *" uninstall --yes faiss"*) echo uninstall >> log; rm -f .venv/faiss-* ;;
    *".[cpu,"*) echo "$*" | sed 's/.*--editable //' >> log; touch .venv/faiss-cpu ;;
    *".[cuda,"*) echo "$*" | sed 's/.*--editable //' >> log; touch .venv/faiss-gpu ;;
esac
"""
CPU, CUDA = (f".[{faiss},recipes,corruptions]" for faiss in ("cpu", "cuda"))

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def make(tmp_path):
    """Return a function that runs `make` in a folder with some Pythons, and returns the packages that pip got."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("python3", "another", "old", "broken"):
        (tmp_path / name).write_text(PYTHON.replace("NAME", name))
        (tmp_path / name).chmod(0o755)
    left_out = ("FAISS", "PYTHON", "ARGS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"

    def run(*arguments, error=None):
        (tmp_path / "log").write_text("")
        done = subprocess.run(["make", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (done.returncode != 0) == (error is not None), done.stderr
        assert (error or "") in done.stderr
        return (tmp_path / "log").read_text().splitlines()

    return run


def test_make_installs_only_what_is_missing(make, tmp_path):
    assert make("train") == [CPU]
    assert make("train") == []
    assert make("bench") == [".[cpu,recipes,corruptions,bench]"]
    make("clean")
    assert make("bench") == [".[cpu,recipes,corruptions,bench]"]
    assert make("train") == []  # it is part of that
    os.utime(tmp_path / "pyproject.toml", (2**31, 2**31))
    assert make("train") == [CPU]


def test_there_is_one_faiss(make, tmp_path):
    make("train")
    assert make("train", "FAISS=cuda") == ["uninstall", CUDA]
    assert [path.name for path in tmp_path.glob(".venv/faiss-*")] == ["faiss-gpu"]
    assert make("train") == []  # it is kept
    assert make("train", "FAISS=cpu") == ["uninstall", CPU]
    make("train", "FAISS=gpu", error="Expected FAISS to be cpu or cuda, but got gpu")


@pytest.mark.parametrize("first", ["old", "broken"])
def test_another_python_replaces_one_that_fails(make, tmp_path, first):
    make("train", f"PYTHON=./{first}", error="make: ")
    assert not (tmp_path / ".venv").exists()
    assert make("train", "PYTHON=./another") == [CPU]


def test_a_python_other_than_that_of_the_environment_is_refused(make):
    make("train")
    make("train", "PYTHON=./another", error=".venv is of another Python than ./another; remove it with: make clean")
    assert make("train", "PYTHON=./python3") == []
    assert make("clean", "train", "PYTHON=./another") == [CPU]


def test_results_of_other_settings_leave_the_records_alone():
    def shown(*arguments):
        done = subprocess.run(
            ["make", "-n", "reproduce", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return next(line for line in done.stdout.splitlines() if "recipes/reproduce.py" in line)

    assert shown().endswith("--scale digits --results docs/results/digits")
    assert shown("ARGS=--epochs 5").endswith("--scale digits --epochs 5")
