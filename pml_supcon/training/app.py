"""The program `train.py`: train an encoder by any method of the paper, then score it. Usage: `recipes/train.py`."""

import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from accelerate import Accelerator, PartialState

from pml_supcon._console import prepare_streams, say
from pml_supcon.data.images import BrokenImageError
from pml_supcon.training.checkpoint import CheckpointError
from pml_supcon.training.config.parser import parse_settings
from pml_supcon.training.config.settings import RunSettings
from pml_supcon.training.digests import METRICS
from pml_supcon.training.environment import commit
from pml_supcon.training.launch import make_accelerator
from pml_supcon.training.monitoring import TrackerError
from pml_supcon.training.pictures import summary_table
from pml_supcon.training.run import RunFolder, check_tracker, open_run
from pml_supcon.training.signals import Stopped, exit_with_error
from pml_supcon.training.train import load_run, train_and_score

Loaded = TypeVar("Loaded")
Settings = TypeVar("Settings", bound=RunSettings)
SHOWN = ("scored", "linear_probe/", "retrieval/", "train/", "replaced_images", "miner/", "seconds/", "seed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the settings, train, score, and print the summary."""
    prepare_streams()
    settings = parse_settings(arguments)
    run_program("train.py", settings, settings.mixed_precision, open_run, load_run, train_and_score, SHOWN)


def run_program(
    program: str,
    settings: Settings,
    precision: str | None,
    open_folder: Callable[[Settings, Accelerator], RunFolder[Settings]],
    load: Callable[[RunFolder[Settings], Accelerator], Loaded],
    train: Callable[[Loaded, float], None],
    shown: tuple[str, ...],
) -> None:
    """Run a program that trains, and print the summary; an error is one line and an exit status.

    Args:
        program: The name in messages.
        settings: The settings of the run.
        precision: The mixed precision, or None for the launcher's.
        open_folder: Opens and locks the folder of the run, after all checks that need no data.
        load: Reads data and checkpoint, and builds the model.
        train: Trains and scores; its second argument is ``time.perf_counter`` at the start.
        shown: The first letters of the metrics in the summary.
    """
    started = time.perf_counter()
    # 1. Checks that need no data, then data, model and checkpoint: user errors appear here.
    try:
        check_tracker(settings.tracker)
        commit()  # cached now, because files may change during the run
        accelerator = make_accelerator(precision)
        run = open_folder(settings, accelerator)
        prepared = None if run.finished else load(run, accelerator)
    except (ValueError, TypeError, OSError, ImportError) as error:
        exit_with_error(program, error)
    except KeyboardInterrupt:
        exit_stopped(program, Stopped(signal.SIGINT, "before the first step"), run=None)
    # 2. Training and scoring; a finished run only prints its summary.
    try:
        if prepared is not None:
            train(prepared, started)
        print_scores(run, shown)
    except FloatingPointError as error:
        exit_with_error(
            program,
            f"{error}; last good checkpoint: {run.last_good()}; another --output with a lower --learning_rate may do "
            "better",
        )
    except (BrokenImageError, CheckpointError, TrackerError, OSError) as error:
        exit_with_error(program, error)
    except Stopped as stopped:
        exit_stopped(program, stopped, run)
    except KeyboardInterrupt:
        exit_stopped(program, Stopped(signal.SIGINT, "after the last step"), run)
    accelerator.state.destroy_process_group()


def print_scores(run: RunFolder[Any], shown: tuple[str, ...]) -> None:
    """Print the metrics of a finished run whose names start with one of these, on the main process."""
    if PartialState().is_main_process:
        metrics = json.loads((run.path / METRICS).read_text(encoding="utf-8"))
        say(summary_table({name: value for name, value in metrics.items() if name.startswith(shown)}))
        say(f"run folder: {run.path}")


def exit_stopped(program: str, stopped: Stopped, run: RunFolder[Any] | None) -> NoReturn:
    """Print one line about the signal and exit with status 128 + its number, as shells expect."""
    if PartialState().is_main_process:
        saved = "" if run is None else f"; saved {run.last_good()}; continue with: --output {run.path} --resume"
        name = signal.Signals(stopped.number).name
        say(f"{program}: stopped by {name} {stopped}{saved}", sys.stderr)
    sys.exit(128 + stopped.number)


if __name__ == "__main__":
    main()
