"""The expected and the actual contents of the sdist and the wheel."""

import subprocess
import tarfile
import zipfile
from pathlib import Path

#: In the sdist beside the package; in the wheel these are `*.dist-info`.
SDIST_FILES = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}


def package_files(root: Path) -> set[str]:
    """Return the files of the package in a checkout, by their name in the wheel."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "pml_supcon"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.splitlines()
    return {name for name in listed if (root / name).is_file()}


def in_wheel(path: Path) -> set[str]:
    """Return the names in a wheel without its metadata."""
    with zipfile.ZipFile(path) as wheel:
        return {name for name in wheel.namelist() if ".dist-info/" not in name}


def in_sdist(path: Path) -> set[str]:
    """Return the names in an sdist without its top folder and its metadata."""
    with tarfile.open(path) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if not member.isdir()}
    return {name for name in names if ".egg-info/" not in name} - SDIST_FILES


def difference(found: set[str], wanted: set[str]) -> str:
    """Return missing and surplus names in one line; empty if there are none."""
    missing, surplus = sorted(wanted - found), sorted(found - wanted)
    told = [f"missing: {', '.join(missing)}"] if missing else []
    return "; ".join([*told, f"too much: {', '.join(surplus)}"] if surplus else told)
