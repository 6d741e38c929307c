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
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from helpers.wheel_contents import difference, in_sdist, in_wheel, package_files

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = "cpu,recipes"
PYTHONS = ("3.11", "3.13")
#: The tests of the public API, and what they need beyond that.
TESTS = ("functional", "losses", "distributed", "miners", "samplers", "views", "models", "testers", "corruptions")
TESTS = (*TESTS, "test_pml_pipeline.py")
TEST_EXTRAS = f"{EXTRAS},corruptions"
TEST_PACKAGES = ("pytest", "pytest-xdist", "hypothesis", "record-keeper", "tensorboard", "torchmetrics")
SMALL = ("--max-train", "600", "--max-test", "200", "--epochs", "4", "--batch-size", "128", "--seed", "0")
VERSIONS = (
    "pml-supcon",
    "torch",
    "torchvision",
    "pytorch-metric-learning",
    "timm",
    "scikit-learn",
    "numpy",
    "accelerate",
)


class StepError(Exception):
    """A step that did not do what was expected; its output is the message."""


def say(text: str) -> None:
    """A line of the report, with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def run(*command: str | Path, cwd: Path, status: int = 0, **variables: str) -> str:
    """What a command writes, both streams; a status other than the one expected is a failure."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment | variables,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode != status:
        told = done.stdout if len(done.stdout) < 20_000 else "...\n" + done.stdout[-20_000:]
        raise StepError(f"{' '.join(map(str, command))}: expected status {status}, but got {done.returncode}\n{told}")
    return done.stdout


def expect(holds: bool, what: str) -> None:
    """Fail where it does not hold."""
    if not holds:
        raise StepError(f"Expected {what}")


def find_python(name: str) -> Path:
    """An interpreter by its path, or by its version: on the PATH, or one of pyenv's."""
    installed = sorted(Path.home().glob(f".pyenv/versions/{name}.*/bin/python"))
    on_path = [found] if (found := shutil.which(f"python{name}")) else []
    for candidate in (name, *on_path, *installed) if os.sep in name else (*on_path, *installed):
        try:
            found = run(candidate, "-c", "import sys, venv, ensurepip; print(sys.executable)", cwd=Path.cwd())
            return Path(found.strip())
        except (StepError, OSError):
            continue  # a shim of pyenv may stand for a version that is not chosen
    raise SystemExit(f"check_wheel.py: error: found no Python {name} that can make environments; name its path")


def build(source: Path, folder: Path) -> tuple[Path, Path]:
    """A clone of the checkout and the wheel that is built from its sdist; the contents of both are checked."""
    clone, dist = folder / "clone", folder / "dist"
    run("git", "clone", "--quiet", source, clone, cwd=folder)
    run(sys.executable, "-m", "build", "--outdir", dist, clone, cwd=folder)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "direct", clone, cwd=folder)
    (wheel,), (sdist,), (direct,) = dist.glob("*.whl"), dist.glob("*.tar.gz"), (folder / "direct").glob("*.whl")
    wanted = package_files(clone)
    for path, found in ((sdist, in_sdist(sdist)), (wheel, in_wheel(wheel)), (direct, in_wheel(direct))):
        expect(found == wanted, f"{path} to hold the package and nothing else, but {difference(found, wanted)}")
    commit = run("git", "describe", "--always", "--dirty=+", cwd=clone).strip()
    say(f"built {wheel.name} and {sdist.name} of {commit}: {len(wanted)} files, {wheel.stat().st_size // 1024} KB")
    return clone, wheel


def check_example(scripts: Path, clone: Path, place: Path) -> None:
    """The README's Python example runs."""
    blocks = re.findall(r"```python\n(.*?)```", (clone / "README.md").read_text(), re.S)
    expect(len(blocks) > 0, "README.md to have a Python example")
    (place / "example.py").write_text("\n".join([*blocks, "print(scores)"]))
    scores = run(scripts / "python", "example.py", cwd=place).splitlines()[-1]
    expect("precision_at_1_level0" in scores, f"the README's example to score retrieval, but it gave {scores}")
    say("README's example: ran")


def check_recipes(scripts: Path, place: Path) -> None:
    """The recipes train and evaluate, by the console script and as modules that Accelerate launches."""
    output = run(scripts / "pml-supcon", "train", *SMALL, "--output", "runs/one", cwd=place)
    metrics = json.loads((place / "runs/one/metrics.json").read_text())
    shown = {name: round(metrics[name], 4) for name in ("linear_probe/top1", "retrieval/precision_at_1")}
    expect(all(value > 0.8 for value in shown.values()), f"scores above 0.8, but got {shown}\n{output}")
    expect(metrics["commit"] is None, f"no commit in the record of an installed package, but got {metrics['commit']}")
    say(f"pml-supcon train: {shown}")
    config = run(scripts / "pml-supcon", "configs", "digits", cwd=place).strip()
    launched = (
        scripts / "python",
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        "-m",
        "pml_supcon.training.app",
    )
    run(*launched, "--config", config, *SMALL, "--epochs", "1", "--output", "runs/two", cwd=place)
    expect((place / "runs/two/metrics.json").is_file(), "accelerate launch -m pml_supcon.cli train to leave metrics")
    say(f"accelerate launch -m pml_supcon.cli train --config {config}: ran")
    run(scripts / "pml-supcon", "evaluate", "runs/one", "--draws", "2", "--map_methods", "pca", cwd=place)
    found = json.loads((place / "runs/one/evaluation/evaluation.json").read_text())
    size = (place / "runs/one/evaluation/report.html").stat().st_size
    expect(size > 50_000, f"a report with its style and figures, but it has {size} bytes")
    say(f"pml-supcon evaluate: {', '.join(found['sections'])}; report of {size // 1024} KB")
    quick = ("--seeds", "0", "--learning-rate", "0.1", "--epochs", "1", "--warmup-epochs", "0")
    run(scripts / "pml-supcon", "reproduce", "losses", *quick, cwd=place)
    (table,) = place.glob("runs/reproduce/digits/results-*/losses.md")
    made_by = f"pml-supcon {metrics['version/pml-supcon']}"
    expect(made_by in table.read_text(), f"a table made by {made_by}, but got:\n{table.read_text()}")
    say("pml-supcon reproduce losses: ran")


def check_tests(scripts: Path, clone: Path, place: Path) -> None:
    """The tests of the public API pass against the installed wheel."""
    for name in ("docs", "tests"):
        shutil.copytree(clone / name, place / name)
    shutil.copy(clone / "pyproject.toml", place)  # pytest's settings
    tests = [f"tests/{name}" for name in TESTS]
    command = (scripts / "pytest", "-q", "-p", "no:cacheprovider", "-n", "auto", "--dist", "loadfile")
    output = run(*command, *tests, cwd=place, OMP_NUM_THREADS="1")
    say(f"pytest {' '.join(TESTS)}: {output.strip().splitlines()[-1]}")


def borrow_packages(environment: Path) -> None:
    """Let a new environment import the packages of this one; its own packages come first."""
    (own,) = environment.glob("lib/python*/site-packages")
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")


def try_python(python: Path, wheel: Path, clone: Path, folder: Path, full: bool) -> None:
    """Install the wheel for one Python and use it outside the checkout."""
    scripts, place = folder / "environment/bin", folder / "elsewhere"
    place.mkdir(parents=True)
    run(python, "-m", "venv", scripts.parent, cwd=folder)
    if not full:
        borrow_packages(scripts.parent)
    pip = (scripts / "python", "-m", "pip", "--quiet", "--disable-pip-version-check")
    install = (*pip, "install", "--no-compile")  # what is imported is compiled then, the rest never
    if full:
        run(*install, wheel, cwd=folder)
        refused = run(scripts / "pml-supcon", "train", cwd=place, status=2)
        one_line = refused.count("\n") == 1 and "pml-supcon[recipes]" in refused
        expect(one_line, f"one line on the extra, but got: {refused}")
        say(f"without extras: {refused.strip()}")
        run(*install, f"{wheel}[{EXTRAS}]", cwd=folder)
    else:
        run(*install, "--no-deps", "--force-reinstall", wheel, cwd=folder)
    where = run(scripts / "python", "-c", "import pml_supcon; print(pml_supcon.__file__)", cwd=place).strip()
    expect(
        Path(where).is_relative_to(scripts.parent) and "site-packages" in where, f"a wheel's package, but got {where}"
    )
    versions = f"from importlib.metadata import version; print(*[n + ' ' + version(n) for n in {VERSIONS}], sep=', ')"
    say(f"installed with [{EXTRAS}]: {run(scripts / 'python', '-c', versions, cwd=place).strip()}")
    check_example(scripts, clone, place)
    check_recipes(scripts, place)
    if full:
        run(*install, f"{wheel}[{TEST_EXTRAS}]", *TEST_PACKAGES, cwd=folder)
        run(*pip, "uninstall", "--yes", "opencv-python", cwd=folder)  # it needs libGL
        run(*install, "--force-reinstall", "--no-deps", "opencv-python-headless", cwd=folder)
        run(scripts / "python", "-c", "import cv2, imagecorruptions", cwd=place)
        check_tests(scripts, clone, place)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build once, try each Python."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", help=f"versions or paths; default with --full: {', '.join(PYTHONS)}")
    parser.add_argument("--source", type=Path, default=ROOT, help="the checkout (default: this one)")
    parser.add_argument("--full", action="store_true", help="install all packages anew, and run the API's tests")
    options = parser.parse_args(arguments)
    names = options.pythons or (PYTHONS if options.full else [sys.executable])
    pythons = [find_python(name) for name in names]
    failed = []
    with tempfile.TemporaryDirectory(prefix="pml-supcon-wheel-") as name:
        folder = Path(name)
        try:
            clone, wheel = build(options.source.resolve(), folder)
        except StepError as failure:
            raise SystemExit(f"failed: {failure}") from None
        for number, python in enumerate(pythons):
            version = run(python, "--version", cwd=folder).strip()
            say(f"{version} ({python})")
            own = folder / str(number)
            try:
                try_python(python, wheel, clone, own, full=options.full)
            except StepError as failure:
                say(f"FAILED with {version}: {failure}")
                failed.append(version)
            finally:
                shutil.rmtree(own, ignore_errors=True)
    say(f"failed: {', '.join(failed)}" if failed else f"all held with {len(pythons)} Pythons")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
