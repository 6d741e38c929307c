"""The sdist and the wheel hold the package and all its files, and nothing else."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.wheel_contents import difference, in_sdist, in_wheel, package_files

ROOT = Path(__file__).parents[2]


def test_configs_and_data_are_of_the_package():
    files = package_files(ROOT)
    assert {"pml_supcon/cli.py", "pml_supcon/configs/digits.yaml", "pml_supcon/py.typed"} <= files
    suffixes = {Path(name).suffix or Path(name).name for name in files}
    assert {".py", ".yaml", ".j2", ".css", ".js"} <= suffixes


def test_a_difference_is_told():
    assert difference({"a", "b"}, {"b", "c"}) == "missing: c; too much: a"
    assert difference({"a"}, {"a"}) == ""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build both from a copy, so that the checkout stays clean."""
    copy, output = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for folder in ("pml_supcon", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(copy)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def test_the_wheel_holds_the_package(built):
    (wheel,) = built.glob("*.whl")
    assert difference(in_wheel(wheel), package_files(ROOT)) == ""


def test_the_sdist_holds_the_package(built):
    (sdist,) = built.glob("*.tar.gz")
    assert difference(in_sdist(sdist), package_files(ROOT)) == ""
