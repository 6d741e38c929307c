r"""Run the paper's experiments again, at the scale of your machine, and say which of its claims hold there.

    accelerate launch recipes/reproduce.py losses                           # the digits, five seeds, a few minutes
    accelerate launch recipes/reproduce.py all --scale digits               # all experiments, less than two hours
    accelerate launch recipes/reproduce.py methods positives --scale cifar10-small
    accelerate launch --config_file pml_supcon/configs/launch/one_gpu.yaml recipes/reproduce.py methods --scale cifar10
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 recipes/reproduce.py losses

Every method of a table has the same budget, and its learning rate is chosen among the same number of values on held-out
training images; then it is trained with every seed, and the test split is scored once, after the last epoch. What is
finished is not repeated: the same command goes on after an end. Flags that `--help` does not list are settings of all
trainings, as `train.py` takes them (`--epochs 1 --warmup-epochs 0`).
"""

import json
import os
import signal
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState

from pml_supcon._extras import require_imagecorruptions
from pml_supcon.experiments.claims import EXPERIMENTS
from pml_supcon.experiments.figure import draw
from pml_supcon.experiments.record import run_experiment
from pml_supcon.experiments.settings import ReproduceSettings, parse
from pml_supcon.experiments.table import tables_of
from pml_supcon.experiments.trainings import Trainings
from pml_supcon.training.ending import fail
from pml_supcon.training.job import check_processes
from pml_supcon.training.run_folder import check_writable, commit, replace_text
from pml_supcon.training.stopping import Stopped

PATIENCE = timedelta(days=1)  # processes wait while the main one scores
AGAIN = "the same command goes on from here"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, then write records, tables and drawings."""
    settings = parse(arguments, prog="reproduce.py", description=(__doc__ or "").split("\n")[0])
    try:
        check_writable(settings.results, "--results")
        check_writable(settings.runs, "--runs")
        commit()  # now: files may change while it runs
        patient = InitProcessGroupKwargs(timeout=PATIENCE)
        precision = settings.scale.settings.get("mixed_precision")
        accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[patient])
        check_processes(accelerator)
        trainings = Trainings(settings.runs, accelerator)
        experiments = [EXPERIMENTS[name](settings.scale) for name in settings.experiments]
        if any("corruption" in wanted["sections"] for each in experiments for wanted in each.evaluations):
            require_imagecorruptions()  # before hours of training
        for experiment in experiments:
            record = run_experiment(experiment, settings.scale, settings.seeds, trainings, tell)
            if accelerator.is_main_process:
                write(settings, {**record, "given": settings.given})
    except (ValueError, TypeError, OSError, ImportError) as error:
        fail("reproduce.py", error)
    except torch.OutOfMemoryError as error:
        fail("reproduce.py", f"{str(error).splitlines()[0]}; --chunk-size 64 needs less, and starts anew")
    except Stopped as stopped:
        fail(
            "reproduce.py",
            f"stopped by {signal.Signals(stopped.number).name} {stopped}; {AGAIN}",
            status=128 + stopped.number,
        )
    except KeyboardInterrupt:
        fail("reproduce.py", f"stopped; {AGAIN}", status=128 + signal.SIGINT)
    accelerator.state.destroy_process_group()


def tell(text: str) -> None:
    """Print a line, on one process."""
    if PartialState().is_main_process:
        print(text, flush=True)


def write(settings: ReproduceSettings, record: dict[str, Any]) -> None:
    """Leave the record, the table and the drawing of an experiment, and print the table."""
    name = record["experiment"]
    settings.results.mkdir(parents=True, exist_ok=True)
    replace_text(settings.results / f"{name}.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    table = tables_of(record)
    replace_text(settings.results / f"{name}.md", table)
    aside = settings.results / f".{name}.partial.svg"
    draw(record, aside)
    os.replace(aside, settings.results / f"{name}.svg")
    print(f"\n{record['title']}\n\n{table}\n{settings.results / name}.json, .md, .svg\n", flush=True)


if __name__ == "__main__":
    main()
