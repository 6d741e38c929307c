"""What the sdist and the wheel are to hold, and what they hold."""

import subprocess
import tarfile
import zipfile
from pathlib import Path

#: In the sdist beside the package; in the wheel these are `*.dist-info`.
SDIST_FILES = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}


def package_files(root: Path) -> set[str]:
    """The files of the package in a checkout, by their name in the wheel; `pml_supcon/recipes` is a link there."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "pml_supcon", "recipes"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.splitlines()
    files = {name for name in listed if (root / name).is_file()}
    return {f"pml_supcon/{name}" if name.startswith("recipes/") else name for name in files}


def in_wheel(path: Path) -> set[str]:
    """The names in a wheel without those of its metadata."""
    with zipfile.ZipFile(path) as wheel:
        return {name for name in wheel.namelist() if ".dist-info/" not in name}


def in_sdist(path: Path) -> set[str]:
    """The names in an sdist without its folder and those of its metadata."""
    with tarfile.open(path) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if not member.isdir()}
    return {name for name in names if ".egg-info/" not in name} - SDIST_FILES


def difference(found: set[str], wanted: set[str]) -> str:
    """What is missing and what is too much, in one line; empty where all is well."""
    missing, surplus = sorted(wanted - found), sorted(found - wanted)
    told = [f"missing: {', '.join(missing)}"] if missing else []
    return "; ".join([*told, f"too much: {', '.join(surplus)}"] if surplus else told)
