"""The program `reproduce.py`: repeat the paper's experiments and judge its claims. Usage: `recipes/reproduce.py`."""

import json
import signal
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState

from pml_supcon._console import note, prepare_streams, say
from pml_supcon._extras import require_imagecorruptions
from pml_supcon._files import write_atomic
from pml_supcon.experiments.experiment import Experiment
from pml_supcon.experiments.plot import plot
from pml_supcon.experiments.record import with_text
from pml_supcon.experiments.registry import EXPERIMENTS
from pml_supcon.experiments.runner import TrainingRunner, run_experiment
from pml_supcon.experiments.settings import ReproduceSettings, parse
from pml_supcon.experiments.tables import tables_of
from pml_supcon.training.environment import commit
from pml_supcon.training.launch import make_accelerator
from pml_supcon.training.run import check_writable
from pml_supcon.training.signals import Stopped, exit_with_error

AGAIN = "the same command continues from here"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the missing trainings, then write records, tables and plots."""
    prepare_streams()
    settings = parse(arguments, prog="reproduce.py", description="Repeat the paper's experiments and judge its claims.")
    try:
        check_writable(settings.runs, "--runs")
        check_writable(settings.results, "--results")
        commit()  # cached now, because files may change during the run
        accelerator = make_accelerator(settings.scale.settings.get("mixed_precision"))
        runner = TrainingRunner(settings.runs, accelerator)
        experiments = [EXPERIMENTS[name](settings.scale) for name in settings.experiments]
        if any("corruption" in options["sections"] for each in experiments for options in each.evaluations):
            require_imagecorruptions()  # before hours of training
        for experiment in experiments:
            record = run_experiment(experiment, settings.scale, settings.seeds, runner, log)
            if accelerator.is_main_process:
                write(settings, experiment, {**record, "given": settings.given})
    except (ValueError, TypeError, OSError, ImportError) as error:
        exit_with_error("reproduce.py", error)
    except torch.OutOfMemoryError as error:
        exit_with_error(
            "reproduce.py", f"{str(error).splitlines()[0]}; --chunk-size 64 needs less memory and starts new runs"
        )
    except Stopped as stopped:
        exit_with_error(
            "reproduce.py",
            f"stopped by {signal.Signals(stopped.number).name} {stopped}; {AGAIN}",
            status=128 + stopped.number,
        )
    except KeyboardInterrupt:
        exit_with_error("reproduce.py", f"stopped; {AGAIN}", status=128 + signal.SIGINT)
    accelerator.state.destroy_process_group()


def log(text: str) -> None:
    """Print a line on the main process."""
    if PartialState().is_main_process:
        say(text)


def write(settings: ReproduceSettings, experiment: Experiment, record: dict[str, Any]) -> None:
    """Write the record, the table and the plot of an experiment, and print the table."""
    name, described = experiment.name, with_text(record, experiment)
    settings.results.mkdir(parents=True, exist_ok=True)
    write_atomic(settings.results / f"{name}.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    table = tables_of(described)
    write_atomic(settings.results / f"{name}.md", table)
    try:
        write_atomic(settings.results / f"{name}.svg", lambda path: plot(described, path))
    except Exception as error:  # of any library: the record is written, and other experiments follow
        note(f"{settings.results / name}.svg was not drawn: {error!r}")
    say(f"\n{experiment.title}\n\n{table}\n{settings.results / name}.json, .md, .svg\n")


if __name__ == "__main__":
    main()
