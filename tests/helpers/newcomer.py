"""A newcomer's walk: clone the repository and run the commands of the pages in the clone, with the clone's own `.venv`.

    make walk                    # with the packages of this `.venv`, a few minutes; `make test-all` runs it
    make walk ARGS=--install     # `make` installs all packages, and `make test` is the last step: half an hour, 5 GB
    make walk ARGS="--install --source URL --python python3.13"

Each command is looked up on its page in the clone; the walk fails if the page does not have it. Only `SHORTER` changes
commands. The last line says that the walk held, or where it broke.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from helpers.walk_checks import BrokenError, check_report, check_resumed, check_run, expect, history
from helpers.walk_pages import find_command, find_python
from helpers.walk_shell import ACTIVATE, Walk, borrow_packages

HERE = Path(__file__).resolve().parent
README, START, OWN = "README.md", "docs/quick_start.md", "docs/guides/own_images.md"
TRAIN, EVALUATE = "docs/recipes/train.md", "docs/recipes/evaluate.md"
#: Flags of a page, and the flags in their place that save time.
SHORTER = {"--epochs 100": "--epochs 8 --image-size 32 --batch-size 32"}
EPOCHS = 8
OWN_TRAIN = "python recipes/train.py --data imagefolder:my/images --epochs 100 --output runs/images"
DIGITS = [str(digit) for digit in range(10)]


@dataclass(frozen=True)
class Step:
    """A command of a page, or all Python blocks of the page, with a check of the result.

    Attributes:
        page: The path of the page in the repository.
        command: The command as the page has it; "" stands for the Python blocks.
        check: A function that raises if a result is missing; its text is printed.
        activated: True if `.venv` is activated, as the pages ask after `make` has created it.
        stopped: A run that gets Ctrl-C after its first checkpoint.
    """

    page: str
    command: str
    check: Callable[[Walk], str | None]
    activated: bool = True
    stopped: str = ""


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


def report(name: str, classes: list[str], encoders: int = 1) -> Callable[[Walk], str]:
    """Return a check of a report under `runs/`."""
    return lambda walk: check_report(walk.clone / "runs" / name, classes=classes, encoders=encoders)


def indexed(walk: Walk) -> None:
    """Check the FAISS index of the user's images."""
    expect((walk.clone / "my/images.faiss").stat().st_size > 0, "my/images.faiss is empty")


SHAPES = ["disc", "ring", "square", "triangle"]
STEPS = (
    Step(README, "make train", first_run, activated=False),
    Step(START, 'make train ARGS="--output runs/mine"', digits_run("mine"), activated=False),
    Step(START, ACTIVATE, lambda walk: None, activated=False),
    Step(
        START,
        "python recipes/train.py --method cross_entropy --output runs/plain",
        digits_run("plain"),
    ),
    Step(
        START,
        "python recipes/evaluate.py runs/mine --compare runs/plain",
        report("mine/evaluation-beside-plain", DIGITS, encoders=2),
    ),
    Step(EVALUATE, "python recipes/evaluate.py runs/mine", report("mine/evaluation", DIGITS)),
    Step(START, "", lambda walk: None),
    Step(TRAIN, "python recipes/train.py --output runs/mine --resume", digits_run("mine")),
    Step(OWN, OWN_TRAIN, was_stopped, stopped="runs/images"),
    Step(OWN, f"{OWN_TRAIN} --resume", went_on),
    Step(OWN, "python recipes/evaluate.py runs/images", report("images/evaluation", SHAPES)),
    Step(OWN, "", indexed),
    Step(README, "make test", lambda walk: None, activated=False),
)


def shorter(command: str) -> str:
    """Return the command with the values of `SHORTER`."""
    for said, run in SHORTER.items():
        command = command.replace(said, run)
    return command


def take(walk: Walk, step: Step) -> str:
    """Take one step and return a remark for the log."""
    if step.command:
        command = shorter(find_command(walk.clone, step.page, step.command))
    else:
        script = walk.clone.parent / f"{Path(step.page).stem}.py"
        script.write_text("\n".join(find_python(walk.clone, step.page)))
        command = f"python {script}"
    if step.stopped:
        checkpoints = walk.clone / step.stopped / "checkpoints"
        status = walk.type(command, until=lambda: any(checkpoints.glob("step-*")))
        expect(status in (130, -signal.SIGINT), f"Expected status 130 after Ctrl-C, got {status}:\n{walk.tail()}")
    else:
        walk.type_well(command, activated=step.activated)
    return step.check(walk) or ""


def prepare(walk: Walk, step: Step) -> None:
    """Create the folder of images before the first step that needs it."""
    images = walk.clone / "my/images"
    if step.page == OWN and not images.exists():
        walk.type_well(f"python {HERE / 'walk_images.py'} {images}")


def walk_all(walk: Walk, steps: tuple[Step, ...]) -> None:
    """Take all steps in order and print the page and the seconds of each; a `BrokenError` names its step."""
    for number, step in enumerate(steps, 1):
        started = time.perf_counter()
        name = f"[{number}/{len(steps)}] {step.page}: {shorter(step.command) or 'its python blocks'}"
        print(name, end="", flush=True)
        try:
            prepare(walk, step)
            said = take(walk, step)
        except (BrokenError, OSError) as error:
            print(f"  BROKE after {time.perf_counter() - started:.0f} s\n{error}")
            raise BrokenError(name) from error
        print(f"  {time.perf_counter() - started:.0f} s{f' ({said})' if said else ''}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Take the walk and return the exit status."""
    parser = argparse.ArgumentParser(description="A newcomer's walk through README and the pages.")
    parser.add_argument("--source", default=str(HERE.parents[1]), help="repository to clone; default: this checkout")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the clone's .venv")
    parser.add_argument("--install", action="store_true", help="let make install all packages, and run make test")
    parser.add_argument(
        "--folder",
        type=Path,
        help="folder of the walk, kept afterwards; default: a temporary folder, of which a broken walk keeps the log",
    )
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits a handler that ignores Ctrl-C
    folder = given.folder or Path(tempfile.mkdtemp(prefix="walk-"))
    folder.mkdir(parents=True, exist_ok=True)
    steps = tuple(step for step in STEPS if given.install or step.command != "make test")
    started = time.perf_counter()
    for said, run in SHORTER.items():
        print(f"in place of {said!r} the walk runs {run!r}")
    walk, held = Walk(folder, given.python), False
    try:
        subprocess.run(["git", "clone", "--quiet", given.source, str(walk.clone)], check=True)
        if not given.install:
            borrow_packages(walk.clone, given.python)
        walk_all(walk, steps)
        held = True
    except subprocess.CalledProcessError:
        print(f"The walk broke: {given.source} cannot be cloned.")
    except BrokenError as error:
        print(f"The walk broke at {error}; log: {walk.log}")
    except KeyboardInterrupt:
        print("\nThe walk was stopped.")
    finally:
        if given.folder is None:  # a broken walk keeps its log
            shutil.rmtree(folder if held or not walk.log.exists() else walk.clone, ignore_errors=True)
    if not held:
        return 1
    print(f"The walk held: {len(steps)} steps in {time.perf_counter() - started:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
