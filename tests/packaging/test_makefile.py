"""`make` keeps one FAISS and one Python in `.venv`, and installs only what is not there yet."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# In the place of Python: answers what make asks, and has pip note what it is told. What it is goes by its file's name.
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
def checkout(tmp_path):
    """A folder with the Makefile and some Pythons."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("python3", "another", "old", "broken"):
        (tmp_path / name).write_text(PYTHON.replace("NAME", name))
        (tmp_path / name).chmod(0o755)
    return tmp_path


def make(checkout, *arguments, status=0):
    """What pip was told, and what make said where it was to fail."""
    left_out = ("FAISS", "PYTHON", "ARGS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment["PATH"] = f"{checkout}{os.pathsep}{environment['PATH']}"
    log = checkout / "log"
    log.write_text("")
    done = subprocess.run(
        ["make", *arguments], cwd=checkout, env=environment, check=False, capture_output=True, text=True
    )
    assert (done.returncode != 0) == (status != 0), done.stderr
    return done.stderr if status else log.read_text().splitlines()


def faiss(checkout):
    return [path.name for path in checkout.glob(".venv/faiss-*")]


def test_what_is_installed_is_not_installed_again(checkout):
    assert make(checkout, "train") == [CPU]
    assert make(checkout, "train") == []
    assert make(checkout, "bench") == [".[cpu,recipes,corruptions,bench]"]
    make(checkout, "clean")
    assert make(checkout, "bench") == [".[cpu,recipes,corruptions,bench]"]
    assert make(checkout, "train") == []  # it is part of that
    os.utime(checkout / "pyproject.toml", (2**31, 2**31))
    assert make(checkout, "train") == [CPU]


def test_there_is_one_faiss(checkout):
    make(checkout, "train")
    assert make(checkout, "train", "FAISS=cuda") == ["uninstall", CUDA]
    assert faiss(checkout) == ["faiss-gpu"]
    assert make(checkout, "train") == []  # it is kept
    assert make(checkout, "train", "FAISS=cpu") == ["uninstall", CPU]
    assert faiss(checkout) == ["faiss-cpu"]
    assert make(checkout, "train", "FAISS=cuda") == ["uninstall", CUDA]
    assert "Expected FAISS to be cpu or cuda, but got gpu" in make(checkout, "train", "FAISS=gpu", status=2)


@pytest.mark.parametrize("first", ["old", "broken"])
def test_another_python_may_be_named_after_one_that_does_not_do(checkout, first):
    make(checkout, "train", f"PYTHON=./{first}", status=2)
    assert not (checkout / ".venv").exists()
    assert make(checkout, "train", "PYTHON=./another") == [CPU]


def test_a_python_that_is_not_that_of_the_environment_is_refused(checkout):
    make(checkout, "train")
    said = make(checkout, "train", "PYTHON=./another", status=2)
    assert "make: .venv is of another Python than ./another; remove it with: make clean" in said
    assert make(checkout, "train", "PYTHON=./python3") == []
    assert make(checkout, "clean", "train", "PYTHON=./another") == [CPU]


def test_results_of_other_settings_leave_the_records_alone():
    def shown(*arguments):
        done = subprocess.run(
            ["make", "-n", "reproduce", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return next(line for line in done.stdout.splitlines() if "recipes/reproduce.py" in line)

    assert shown().endswith("--scale digits --results docs/results/digits")
    assert shown("ARGS=--epochs 5").endswith("--scale digits --epochs 5")
