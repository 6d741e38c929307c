"""The program `train.py`: train an encoder by any method of the paper, then score it. Usage: `recipes/train.py`."""

import json
import signal
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from accelerate import PartialState

from pml_supcon._console import prepare_streams, say
from pml_supcon.data.images import BrokenImageError
from pml_supcon.training.checkpoint import CheckpointError
from pml_supcon.training.config.parser import parse_settings
from pml_supcon.training.digests import METRICS
from pml_supcon.training.environment import commit
from pml_supcon.training.launch import make_accelerator
from pml_supcon.training.monitoring import TrackerError
from pml_supcon.training.pictures import summary_table
from pml_supcon.training.run import RunFolder, check_tracker, open_run
from pml_supcon.training.signals import Stopped, exit_with_error
from pml_supcon.training.train import load_run, train_and_score

SHOWN = ("scored", "linear_probe/", "retrieval/", "train/", "replaced_images", "miner/", "seconds/", "seed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the settings, train, score, and print the summary."""
    started = time.perf_counter()
    prepare_streams()
    settings = parse_settings(arguments)
    # 1. Checks that need no data, then data, model and checkpoint: user errors appear here.
    try:
        check_tracker(settings.tracker)
        commit()  # cached now, because files may change during the run
        accelerator = make_accelerator(settings.mixed_precision)
        run = open_run(settings, accelerator)
        prepared = None if run.finished else load_run(run, accelerator)
    except (ValueError, TypeError, OSError, ImportError) as error:
        exit_with_error("train.py", error)
    except KeyboardInterrupt:
        exit_stopped(Stopped(signal.SIGINT, "before the first step"), run=None)
    # 2. Training and scoring; a finished run only prints its summary.
    try:
        if prepared is not None:
            train_and_score(prepared, started)
        print_scores(run)
    except FloatingPointError as error:
        exit_with_error(
            "train.py",
            f"{error}; last good checkpoint: {run.last_good()}; another --output with a lower --learning_rate may do "
            "better",
        )
    except (BrokenImageError, CheckpointError, TrackerError, OSError) as error:
        exit_with_error("train.py", error)
    except Stopped as stopped:
        exit_stopped(stopped, run)
    except KeyboardInterrupt:
        exit_stopped(Stopped(signal.SIGINT, "after the last step"), run)
    accelerator.state.destroy_process_group()


def print_scores(run: RunFolder) -> None:
    """Print the summary of a finished run on the main process."""
    if PartialState().is_main_process:
        metrics = json.loads((run.path / METRICS).read_text(encoding="utf-8"))
        say(summary_table({name: value for name, value in metrics.items() if name.startswith(SHOWN)}))
        say(f"run folder: {run.path}")


def exit_stopped(stopped: Stopped, run: RunFolder | None) -> NoReturn:
    """Print one line about the signal and exit with status 128 + its number, as shells expect."""
    if PartialState().is_main_process:
        saved = "" if run is None else f"; saved {run.last_good()}; continue with: --output {run.path} --resume"
        name = signal.Signals(stopped.number).name
        say(f"train.py: stopped by {name} {stopped}{saved}", sys.stderr)
    sys.exit(128 + stopped.number)


if __name__ == "__main__":
    main()
