"""Continual learning as a program, without the report that `evaluation.continual` adds."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pml_supcon._console import prepare_streams
from pml_supcon.training.app import run_program
from pml_supcon.training.continual.settings import parse_settings
from pml_supcon.training.continual.train import load_run, open_run, train_and_score

SCORED = {"class": "class_il", "task": "task_il", "domain": "class_il"}  # the accuracy of each scenario


def main(arguments: Sequence[str] | None = None, *, report: Callable[[Path], object] | None = None) -> None:
    """Parse the settings, train on all tasks, score them after each, and print the summary.

    ``report`` gets the folder with all files but the metrics, on the main process; its failure is a note.
    """
    prepare_streams()
    settings = parse_settings(arguments)
    kind = SCORED[settings.scenario]
    shown = (f"average_accuracy/{kind}", f"forgetting/{kind}", "train/", "replaced_images", "seconds/", "seed")
    train = partial(train_and_score, report=report)
    run_program("continual.py", settings, settings.mixed_precision, open_run, load_run, train, shown)
