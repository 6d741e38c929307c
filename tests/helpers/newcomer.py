"""A newcomer's walk: clone the repository and run the commands of the pages in the clone, with the clone's own `.venv`.

    make walk                    # with the packages of this `.venv`, a few minutes; `make test-all` runs it
    make walk ARGS=--install     # `make` installs all packages, and `make test` is the last step: half an hour, 5 GB
    make walk ARGS="--install --source URL --python python3.13"

Each command is looked up on its page in the clone; the walk fails if the page does not have it. Only `SHORTER` changes
commands. The last line says that the walk held, or where it broke.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from helpers.code_blocks import blocks_of
from helpers.walk_checks import BrokenError, check_report, check_resumed, check_run, expect, history

HERE = Path(__file__).resolve().parent
ACTIVATE = "source .venv/bin/activate"
#: Variables of the shell or the `make` that starts the walk; the clone must not inherit them.
OF_THIS_CHECKOUT = ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS", "FAISS")
README, START, OWN = "README.md", "docs/quick_start.md", "docs/guides/own_images.md"
TRAIN, EVALUATE = "docs/recipes/train.md", "docs/recipes/evaluate.md"
#: Flags of a page, and the flags in their place that save time.
SHORTER = ("--epochs 100", "--epochs 8 --image-size 32 --batch-size 32")
EPOCHS = 8


class Walk:
    """A clone with a shell.

    Args:
        folder: A folder for the clone.
        python: The interpreter of the clone's `.venv`.
    """

    def __init__(self, folder: Path, python: str) -> None:
        self.clone, self.log = folder / "clone", folder / "walk.log"
        self.env = {name: value for name, value in os.environ.items() if name not in OF_THIS_CHECKOUT}
        self.env |= {"PYTHON": python, "MPLBACKEND": "agg"}
        self.before: list[dict[str, Any]] = []  # steps of a run when it was stopped

    def type(self, command: str, *, activated: bool, until: Callable[[], bool] | None = None) -> int:
        """Run a command in a shell, send Ctrl-C once `until` holds, and return the exit status."""
        shell = ["bash", "-e", "-c", f"{ACTIVATE}\n{command}" if activated else command]
        streams: dict[str, Any] = {"stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        with self.log.open("a") as log:
            log.write(f"\n$ {command}\n")
            log.flush()
            typed = subprocess.Popen(shell, cwd=self.clone, env=self.env, stdout=log, process_group=0, **streams)
            try:
                while until is not None and typed.poll() is None and not until():
                    time.sleep(0.01)
                if until is not None and typed.poll() is None:
                    os.killpg(typed.pid, signal.SIGINT)
                return typed.wait()
            except BaseException:
                os.killpg(typed.pid, signal.SIGTERM)
                raise

    def tail(self) -> str:
        """Return the last lines of the output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


class Step(NamedTuple):
    """A command of a page, or all Python blocks of the page, with a check of the result.

    Attributes:
        page: The path of the page in the repository.
        command: The command as the page has it; "" stands for the Python blocks.
        check: A function that raises if a result is missing; it may return a remark.
        activated: True if `.venv` is activated, as the pages ask after `make` has created it.
        stopped: True if the run of images gets Ctrl-C after its first checkpoint.
    """

    page: str
    command: str
    check: Callable[[Walk], object] = lambda walk: None
    activated: bool = True
    stopped: bool = False


def first_run(walk: Walk) -> None:
    """Check that `make train` leaves one run."""
    runs = [path.parent for path in walk.clone.glob("runs/*/metrics.json")]
    expect(len(runs) == 1, f"Expected one run under runs/, but found {len(runs)}")
    check_run(runs[0], at_least=0.95)


def digits_run(name: str) -> Callable[[Walk], None]:
    """Return a check of a run on the digits."""
    return lambda walk: check_run(walk.clone / "runs" / name, at_least=0.95)


def was_stopped(walk: Walk) -> None:
    """Check that the run logged its stop and is not finished."""
    run = walk.clone / "runs/images"
    expect(not (run / "metrics.json").exists(), f"{run} was finished before it could be stopped")
    expect("stopped by SIGINT" in walk.tail(), f"{run} did not log that it was stopped:\n{walk.tail()}")
    walk.before = history(run)


def went_on(walk: Walk) -> str:
    """Check that the same run continued to its end."""
    run = walk.clone / "runs/images"
    check_resumed(run, walk.before, EPOCHS)
    check_run(run, at_least=0.6)  # four classes, a few seconds of training
    return f"stopped after {len(walk.before)} of {len(history(run))} steps"


def report(name: str, classes: list[str], encoders: int = 1) -> Callable[[Walk], None]:
    """Return a check of a report under `runs/`."""
    return lambda walk: check_report(walk.clone / "runs" / name, classes=classes, encoders=encoders)


def indexed(walk: Walk) -> None:
    """Check the FAISS index of the user's images."""
    expect((walk.clone / "my/images.faiss").stat().st_size > 0, "my/images.faiss is empty")


DIGITS, SHAPES = list("0123456789"), ["disc", "hexagon", "square", "triangle"]
OWN_TRAIN = "python recipes/train.py --data imagefolder:my/images --epochs 100 --output runs/images"
PLAIN_TRAIN = "python recipes/train.py --method cross_entropy --output runs/plain"
COMPARE = "python recipes/evaluate.py runs/mine --compare runs/plain"
STEPS = (
    Step(README, "make train", first_run, activated=False),
    Step(START, 'make train ARGS="--output runs/mine"', digits_run("mine"), activated=False),
    Step(START, ACTIVATE, activated=False),
    Step(START, PLAIN_TRAIN, digits_run("plain")),
    Step(START, COMPARE, report("mine/evaluation-beside-plain", DIGITS, encoders=2)),
    Step(EVALUATE, "python recipes/evaluate.py runs/mine", report("mine/evaluation", DIGITS)),
    Step(START, ""),
    Step(TRAIN, "python recipes/train.py --output runs/mine --resume", digits_run("mine")),
    Step(OWN, OWN_TRAIN, was_stopped, stopped=True),
    Step(OWN, f"{OWN_TRAIN} --resume", went_on),
    Step(OWN, "python recipes/evaluate.py runs/images", report("images/evaluation", SHAPES)),
    Step(OWN, "", indexed),
    Step(README, "make test", activated=False),
)


def commands_of(text: str, page: str) -> list[str]:
    """Return the commands of a page: lines of Bash blocks without their comments, then inline code."""
    bash = "".join(block.code for block in blocks_of(text, page) if block.language == "bash")
    typed = [re.sub(r"(^|\s+)#\s.*$", "", line).strip() for line in re.sub(r"\\\n\s*", "", bash).splitlines()]
    return [line for line in typed if line] + re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


def find_command(root: Path, step: Step) -> None:
    """Raise a `BrokenError` if the step's page lacks its command or Python blocks."""
    text = (root / step.page).read_text()
    found = commands_of(text, step.page)
    near = [line for line in found if line.split()[:2] == step.command.split()[:2]] or found
    shown = "".join(f"\n    {line}" for line in near)
    expect(
        step.command in found or (not step.command and "```python" in text),
        f"Expected {step.page} to have the command\n    {step.command}\nbut it has{shown}",
    )


def take(walk: Walk, step: Step) -> object:
    """Take one step and return the remark of its check."""
    find_command(walk.clone, step)
    images = walk.clone / "my/images"
    if step.page == OWN and not images.exists():
        walk.type(f"python {HERE / 'walk_images.py'} {images}", activated=True)
    command = step.command.replace(*SHORTER)
    if not command:
        script = walk.clone.parent / f"{Path(step.page).stem}.py"
        blocks = blocks_of((walk.clone / step.page).read_text(), step.page)
        script.write_text("\n".join(block.code for block in blocks if block.language == "python"))
        command = f"python {script}"
    checkpoints = walk.clone / "runs/images/checkpoints"
    until = (lambda: any(checkpoints.glob("step-*"))) if step.stopped else None
    status = walk.type(command, activated=step.activated, until=until)
    expected = (130, -signal.SIGINT) if step.stopped else (0,)
    expect(status in expected, f"status {status}, expected {expected[0]}, after\n{walk.tail()}")
    return step.check(walk)


def borrow_packages(clone: Path, python: str) -> None:
    """Create the clone's `.venv` with the clone's package and the other packages of this Python, as `make` would."""
    subprocess.run([python, "-m", "venv", "--without-pip", str(clone / ".venv")], check=True)
    (packages,) = (clone / ".venv").glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(f"{clone}\n{sysconfig.get_path('purelib')}\n")
    scripts = clone / ".venv/bin"
    for script in entry_points(group="console_scripts"):
        if script.name in ("accelerate", "pml-supcon"):
            code = f"#!{scripts / 'python'}\nfrom {script.module} import {script.attr}\n{script.attr}()\n"
            (scripts / script.name).write_text(code)
            (scripts / script.name).chmod(0o755)
    (clone / ".venv/.recipes-cpu").touch()  # make's mark of a finished installation


def walk_all(walk: Walk, steps: tuple[Step, ...]) -> None:
    """Take all steps in order and print the page and the seconds of each; a `BrokenError` names its step."""
    for number, step in enumerate(steps, 1):
        started = time.perf_counter()
        name = f"[{number}/{len(steps)}] {step.page}: {step.command.replace(*SHORTER) or 'its python blocks'}"
        print(name, end="", flush=True)
        try:
            remark = take(walk, step)
        except (BrokenError, OSError) as error:
            print(f"  BROKE after {time.perf_counter() - started:.0f} s\n{error}")
            raise BrokenError(name) from error
        print(f"  {time.perf_counter() - started:.0f} s{f' ({remark})' if remark else ''}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Take the walk and return the exit status."""
    parser = argparse.ArgumentParser(description="A newcomer's walk through README and the pages.")
    parser.add_argument("--source", default=str(HERE.parents[1]), help="repository to clone; default: this checkout")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the clone's .venv")
    parser.add_argument("--install", action="store_true", help="let make install all packages, and run make test")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits a handler that ignores Ctrl-C
    folder = Path(tempfile.mkdtemp(prefix="walk-"))
    steps = tuple(step for step in STEPS if given.install or step.command != "make test")
    started = time.perf_counter()
    print("in place of {!r} the walk runs {!r}".format(*SHORTER))
    walk, held = Walk(folder, given.python), False
    try:
        subprocess.run(["git", "clone", "--quiet", given.source, str(walk.clone)], check=True)
        if not given.install:
            borrow_packages(walk.clone, given.python)
        walk_all(walk, steps)
        held = True
        print(f"The walk held: {len(steps)} steps in {time.perf_counter() - started:.0f} s.")
    except BrokenError as error:
        print(f"The walk broke at {error}; log: {walk.log}")
    finally:  # a broken walk keeps its log
        shutil.rmtree(folder if held or not walk.log.exists() else walk.clone, ignore_errors=True)
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())
