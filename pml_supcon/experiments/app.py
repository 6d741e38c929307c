r"""Repeat the paper's experiments at the scale of your machine and judge its claims.

    python recipes/reproduce.py losses                        # the digits, five seeds, a few minutes
    python recipes/reproduce.py all --scale digits            # all experiments, less than two hours
    python recipes/reproduce.py methods positives --scale cifar10-small
    accelerate launch --config_file pml_supcon/configs/launch/one_gpu.yaml recipes/reproduce.py methods --scale cifar10
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 recipes/reproduce.py losses

All methods of a table have the same budget. The learning rate of each is chosen among the same number of values on
held-out training images. Each method is then trained with every seed, and the test split is scored once, after the last
epoch. After an interruption the same command continues; finished runs are not repeated. Flags that `--help` does not
list set options of all trainings, as `train.py` takes them (`--epochs 1 --warmup-epochs 0`).
"""

import json
import os
import signal
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState

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
from pml_supcon.training.launch import GROUP_TIMEOUT, make_accelerator
from pml_supcon.training.run import check_writable
from pml_supcon.training.signals import Stopped, exit_with_error

AGAIN = "the same command continues from here"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the missing trainings, then write records, tables and plots."""
    settings = parse(arguments, prog="reproduce.py", description=(__doc__ or "").split("\n")[0])
    try:
        check_writable(settings.results, "--results")
        check_writable(settings.runs, "--runs")
        commit()  # cached now, because files may change during the run
        precision = settings.scale.settings.get("mixed_precision")
        accelerator = make_accelerator(precision, GROUP_TIMEOUT)
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
        print(text, flush=True)


def write(settings: ReproduceSettings, experiment: Experiment, record: dict[str, Any]) -> None:
    """Write the record, the table and the plot of an experiment, and print the table."""
    name, described = experiment.name, with_text(record, experiment)
    settings.results.mkdir(parents=True, exist_ok=True)
    write_atomic(settings.results / f"{name}.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    table = tables_of(described)
    write_atomic(settings.results / f"{name}.md", table)
    partial = settings.results / f".{name}.partial.svg"
    plot(described, partial)
    os.replace(partial, settings.results / f"{name}.svg")
    print(f"\n{experiment.title}\n\n{table}\n{settings.results / name}.json, .md, .svg\n", flush=True)


if __name__ == "__main__":
    main()
