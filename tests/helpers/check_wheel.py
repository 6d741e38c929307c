"""Build the sdist and the wheel of a clean clone, and use the wheel where there is no checkout (`make wheel-test`).

    make wheel-test                                  # this Python, with the packages of its environment (a minute)
    make wheel-test ARGS=--full                      # Python 3.11 and 3.13 with all packages installed anew
    make wheel-test ARGS="--full 3.12 /opt/python"   # other Pythons, by version or path

With `--full`, each Python needs an environment of 5 GB and a quarter of an hour, and runs the tests of the public API
too. Only committed files are tested. The exit status is 1 if a step failed; its output is printed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = "cpu,recipes"
PYTHONS = ("3.11", "3.13")
#: The tests of the public API, and what they need beyond the extras.
TESTS = ("functional", "losses", "distributed", "miners", "samplers", "views", "models", "testers", "corruptions")
TESTS = (*TESTS, "test_pml_pipeline.py")
TEST_PACKAGES = ("pytest", "pytest-xdist", "hypothesis", "record-keeper", "tensorboard", "torchmetrics")
SMALL = ("--max-train", "600", "--max-test", "200", "--epochs", "4", "--batch-size", "128", "--seed", "0")
VERSIONS = ("pml-supcon", "torch", "torchvision", "pytorch-metric-learning", "timm", "scikit-learn", "accelerate")
#: Files of the sdist beside the package; in the wheel these are `*.dist-info`.
SDIST_FILES = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}


class StepError(Exception):
    """The error of a step whose result differs from the expected one; its text has the output."""


def say(text: str) -> None:
    """Print a line of the report with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def run(*command: str | Path, cwd: Path, status: int = 0, **variables: str) -> str:
    """Run a command and return its output, both streams; raise if its status differs from the expected one."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words, streams = [str(part) for part in command], {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(words, cwd=cwd, env=environment | variables, text=True, **streams)
    if done.returncode != status:
        raise StepError(f"{' '.join(words)}: status {done.returncode}, expected {status}\n{done.stdout[-20_000:]}")
    return done.stdout


def expect(holds: bool, text: str) -> None:
    """Raise a `StepError` with a text unless a condition holds."""
    if not holds:
        raise StepError(f"Expected {text}")


def find_python(name: str) -> str:
    """Return an interpreter by its path or by its version, from the PATH or pyenv."""
    installed = sorted(map(str, Path.home().glob(f".pyenv/versions/{name}.*/bin/python")))
    for candidate in (shutil.which(name), shutil.which(f"python{name}"), *installed):
        # a shim of pyenv may stand for a version that is not active
        if (
            candidate
            and subprocess.run([candidate, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0
        ):
            return candidate
    raise SystemExit(f"check_wheel.py: error: no Python {name} that can create environments; name its path")


def names_in(archive: Path) -> set[str]:
    """Return the names of the files in a wheel or an sdist, without metadata."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name for name in wheel.namelist() if ".dist-info/" not in name}
    with tarfile.open(archive) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if not member.isdir()}
    return {name for name in names if ".egg-info/" not in name} - SDIST_FILES


def build(source: Path, folder: Path) -> tuple[Path, Path]:
    """Clone the checkout, build its sdist and wheels and check their contents; return the clone and the wheel."""
    clone, dist = folder / "clone", folder / "dist"
    run("git", "clone", "--quiet", source, clone, cwd=folder)
    run(sys.executable, "-m", "build", "--outdir", dist, clone, cwd=folder)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "direct", clone, cwd=folder)
    (wheel,), (sdist,), (direct,) = dist.glob("*.whl"), dist.glob("*.tar.gz"), (folder / "direct").glob("*.whl")
    wanted = set(run("git", "ls-files", "pml_supcon", cwd=clone).splitlines())
    suffixes = {Path(name).suffix for name in wanted}
    expect(suffixes >= {".py", ".pyi", ".typed", ".yaml", ".j2", ".css", ".js"}, f"data files, but got {suffixes}")
    for path in (sdist, wheel, direct):
        differing = sorted(names_in(path) ^ wanted)
        expect(not differing, f"{path} to hold the files of the package, but it differs in {differing}")
    commit = run("git", "describe", "--always", cwd=clone).strip()
    say(f"built {wheel.name} and {sdist.name} of {commit}: {len(wanted)} files, {wheel.stat().st_size // 1024} KB")
    return clone, wheel


def check_example(scripts: Path, clone: Path, place: Path) -> None:
    """Run the README's Python example."""
    blocks = re.findall(r"```python\n(.*?)```", (clone / "README.md").read_text(), re.S)
    (place / "example.py").write_text("\n".join([*blocks, "print(scores)"]))
    scores = run(scripts / "python", "example.py", cwd=place).splitlines()[-1]
    expect("precision_at_1_level0" in scores, f"the README's example to score retrieval, but it gave {scores}")
    say("README's example: ran")


def check_recipes(scripts: Path, place: Path) -> None:
    """Train, evaluate and reproduce by the console script, and train as a module that Accelerate launches."""
    program = scripts / "pml-supcon"
    output = run(program, "train", *SMALL, "--output", "runs/one", cwd=place)
    metrics = json.loads((place / "runs/one/metrics.json").read_text())
    shown = {name: round(metrics[name], 4) for name in ("linear_probe/top1", "retrieval/precision_at_1")}
    expect(all(value > 0.8 for value in shown.values()), f"scores above 0.8, but got {shown}\n{output}")
    expect(metrics["commit"] is None, f"no commit in the record of an installed package, but got {metrics['commit']}")
    say(f"pml-supcon train: {shown}")
    config = run(program, "configs", "digits", cwd=place).strip()
    launch = (scripts / "python", "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    run(
        *launch,
        "-m",
        "pml_supcon.training.app",
        "--config",
        config,
        *SMALL,
        "--epochs",
        "1",
        "--output",
        "runs/two",
        cwd=place,
    )
    expect((place / "runs/two/metrics.json").is_file(), "accelerate launch -m pml_supcon.training.app to leave metrics")
    say(f"accelerate launch -m pml_supcon.training.app --config {config}: ran")
    run(program, "evaluate", "runs/one", "--draws", "2", "--map_methods", "pca", cwd=place)
    found = json.loads((place / "runs/one/evaluation/evaluation.json").read_text())
    size = (place / "runs/one/evaluation/report.html").stat().st_size
    expect(size > 50_000, f"a report with its style and figures, but it has {size} bytes")
    say(f"pml-supcon evaluate: {', '.join(found['sections'])}; report of {size // 1024} KB")
    quick = ("--seeds", "0", "--learning-rate", "0.1", "--epochs", "1", "--warmup-epochs", "0")
    run(program, "reproduce", "losses", *quick, cwd=place)
    (table,) = place.glob("runs/reproduce/digits/results-*/losses.md")
    made_by = f"pml-supcon {metrics['version/pml-supcon']}"
    expect(made_by in table.read_text(), f"a table made by {made_by}, but got:\n{table.read_text()}")
    say("pml-supcon reproduce losses: ran")


def try_python(python: str, wheel: Path, clone: Path, folder: Path, *, full: bool) -> None:
    """Install the wheel for one Python and use it outside the checkout."""
    scripts, place = folder / "environment/bin", folder / "elsewhere"
    place.mkdir(parents=True)
    run(python, "-m", "venv", scripts.parent, cwd=folder)
    pip = (scripts / "python", "-m", "pip", "--quiet", "--disable-pip-version-check")
    install = (*pip, "install", "--no-compile")  # imported modules are compiled on import, the rest never
    if full:
        run(*install, wheel, cwd=folder)
        refused = run(scripts / "pml-supcon", "train", cwd=place, status=2)
        one_line = refused.count("\n") == 1 and "pml-supcon[recipes]" in refused
        expect(one_line, f"one line on the extra, but got: {refused}")
        run(*install, f"{wheel}[{EXTRAS}]", cwd=folder)
    else:  # the packages of this environment; the new environment's own come first
        (own,) = scripts.parent.glob("lib/python*/site-packages")
        (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        run(*install, "--no-deps", "--force-reinstall", wheel, cwd=folder)
    where = run(scripts / "python", "-c", "import pml_supcon; print(pml_supcon.__file__)", cwd=place).strip()
    expect(f"{scripts.parent}/" in where and "site-packages" in where, f"the wheel's package, but got {where}")
    versions = f"from importlib.metadata import version; print(*[n + ' ' + version(n) for n in {VERSIONS}], sep=', ')"
    say(f"installed with [{EXTRAS}]: {run(scripts / 'python', '-c', versions, cwd=place).strip()}")
    check_example(scripts, clone, place)
    check_recipes(scripts, place)
    if full:
        run(*install, f"{wheel}[{EXTRAS},corruptions]", *TEST_PACKAGES, cwd=folder)
        run(*pip, "uninstall", "--yes", "opencv-python", cwd=folder)  # it needs libGL
        run(*install, "--force-reinstall", "--no-deps", "opencv-python-headless", cwd=folder)
        for name in ("docs", "tests"):
            shutil.copytree(clone / name, place / name)
        shutil.copy(clone / "pyproject.toml", place)  # pytest's settings
        command = (scripts / "pytest", "-q", "-p", "no:cacheprovider", "-n", "auto", "--dist", "loadfile")
        output = run(*command, *(f"tests/{name}" for name in TESTS), cwd=place, OMP_NUM_THREADS="1")
        say(f"pytest {' '.join(TESTS)}: {output.strip().splitlines()[-1]}")


def main() -> None:
    """Build once, then try each Python."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", help=f"versions or paths; default with --full: {', '.join(PYTHONS)}")
    parser.add_argument("--source", type=Path, default=ROOT, help="the checkout (default: this one)")
    parser.add_argument("--full", action="store_true", help="install all packages anew, and run the API's tests")
    options = parser.parse_args()
    names = options.pythons or (PYTHONS if options.full else [sys.executable])
    pythons = [find_python(name) for name in names]
    failed = []
    with tempfile.TemporaryDirectory(prefix="pml-supcon-wheel-") as name:
        folder = Path(name)
        try:
            clone, wheel = build(options.source.resolve(), folder)
        except StepError as failure:
            raise SystemExit(f"failed: {failure}") from None
        for python in pythons:
            version = run(python, "--version", cwd=folder).strip()
            say(f"{version} ({python})")
            try:
                try_python(python, wheel, clone, folder / version.replace(" ", "-"), full=options.full)
            except StepError as failure:
                say(f"FAILED with {version}: {failure}")
                failed.append(version)
    say(f"failed: {', '.join(failed)}" if failed else f"all held with {len(pythons)} Pythons")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
