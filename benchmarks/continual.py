"""Compare methods of continual learning on the digits and on a part of CIFAR-10: five tasks of two classes.

    python benchmarks/continual.py --data hf:FOLDER [--quick]

FOLDER has CIFAR-10 as Parquet files; 5,000 of its training images and 2,000 of its test images are used. Each run is
`recipes/continual.py` in a process of its own with one thread, two at a time. Finished runs in `--runs` are kept: after
an interruption the same command continues.

The learning rate of each training is the one with the best class-IL accuracy on a fifth of the training images, held
out, of a seed that is in no table, with the largest buffer; the test images are scored at that rate alone. The first
table has, after the last task, the mean and the standard deviation over the seeds of the accuracy averaged over the
tasks and of the forgetting; and the difference from `er`, paired by seed, with Student's 95% interval. The second has
the orderings of Co2L's paper with the verdict of that interval. A run that diverges counts as chance. Takes about three
hours on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from label_sets import spread
from records import environment
from tables import publish

from pml_supcon.experiments.statistics import interval_of, judge

RECIPE = Path(__file__).resolve().parent.parent / "recipes/continual.py"
#: Flags of the recipe, by training.
METHODS: dict[str, dict[str, Any]] = {
    "co2l": {"method": "co2l"},
    "co2l, distillation 0.1": {"method": "co2l", "distill_weight": 0.1},  # the weight of the paper is 1
    "co2l without distillation": {"method": "co2l", "distill_weight": 0},
    "co2l without contrast": {"method": "co2l", "contrastive_weight": 0},
    "co2l without replay": {"method": "co2l", "replay": False},
    "supcon_replay": {"method": "supcon_replay"},
    "er": {"method": "er"},
    "finetune": {"method": "finetune"},
    "joint": {"method": "joint"},
}
NO_BUFFER = ("finetune", "joint")  # the same run for all sizes of the buffer
#: The orderings of the paper, the better side first: the methods, and that each part of Co2L is needed.
PARTS = ("co2l without distillation", "co2l without contrast", "co2l without replay")
ORDERINGS = (("er", "finetune"), *(("co2l", other) for other in ("er", *PARTS)))
HELD_OUT = 0.2  # the share of the training images that chooses the learning rate
LEARNING_RATES = (0.01, 0.03, 0.1, 0.3)
TUNING_SEED = 1000
SCORES = {"class_il": "class-IL", "task_il": "task-IL"}
HEADER = ["data, buffer: training", "learning rate", *SCORES.values(), "forgetting, class-IL"]
HEADER += [f"{title} minus `er`" for title in SCORES.values()]
HEADER_OF_ORDERINGS = ["data, buffer: ordering", *(cell for each in SCORES.values() for cell in (each, "verdict"))]
DIVERGED = "a lower --learning_rate may do better"  # in the recipe's error
CHANCE = {"average_accuracy": {"class_il": 0.1, "task_il": 0.5}, "forgetting": {"class_il": None, "task_il": None}}

Records = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Part:
    """Runs on one data set: flags of the recipe, sizes of the buffer, seeds, trainings and learning rates."""

    name: str
    flags: Mapping[str, Any]
    buffers: Sequence[int]
    seeds: int
    methods: Sequence[str] = tuple(METHODS)
    learning_rates: Sequence[float] = LEARNING_RATES


def parts_of(data: str) -> list[Part]:
    """Return the runs of the record; ``data`` is CIFAR-10."""
    cifar10 = {"data": data, "max_train": 5000, "max_test": 2000, "epochs": 20, "small_stem": False}
    digits = {"data": "digits", "epochs": 30}  # after 10, `er` with a small buffer is far from its best
    return [Part("digits", digits, (50, 200), 5), Part("CIFAR-10", cifar10, (200,), 3)]


SMALL = {"data": "digits", "max_train": 300, "batch_size": 32, "epochs": 1, "warmup_epochs": 0}
SMALL |= {"encoder_args": {"channels": [8] * 4}}
QUICK = [Part("digits", SMALL, (20,), 1, ("co2l", "er", "finetune"), (0.1,))]


def main(arguments: Sequence[str] | None = None) -> list[list[str]]:
    """Run what is missing, print both tables, write the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10, as hf:FOLDER")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-continual"), help="folder of the runs")
    parser.add_argument("--quick", action="store_true", help="three trainings of one epoch, and no record")
    options = parser.parse_args(arguments)
    if options.data is None and not options.quick:
        parser.error("expected --data hf:FOLDER, CIFAR-10, but got none")
    # runs of another commit are not mixed in
    folder = options.runs / environment("cpu")["commit"]
    rows, orderings = [], []
    for part in QUICK if options.quick else parts_of(options.data):
        rates = choose_rates(part, folder)
        for buffer, records in run_part(part, rates, folder).items():
            where = f"{part.name}, {buffer}"
            rows += score_rows(where, records, rates)
            orderings += ordering_rows(where, records)
    publish("continual", HEADER, rows, quick=options.quick)
    publish("continual_orderings", HEADER_OF_ORDERINGS, orderings, quick=options.quick)
    return rows


def choose_rates(part: Part, folder: Path) -> dict[str, float]:
    """Return the learning rate of each training with the best class-IL accuracy of the tuning seed."""
    if len(part.learning_rates) == 1:
        return dict.fromkeys(part.methods, part.learning_rates[0])
    wanted = {
        (name, rate): planned(part, name, max(part.buffers), rate, TUNING_SEED, held_out=HELD_OUT)
        for name in part.methods
        for rate in part.learning_rates
    }
    found = run_missing(wanted, folder)
    scores = {key: record["average_accuracy"]["class_il"] for key, record in found.items()}
    return {name: max((scores[name, rate], rate) for rate in part.learning_rates)[1] for name in part.methods}


def run_part(part: Part, rates: Mapping[str, float], folder: Path) -> dict[int, Records]:
    """Run all seeds of a part; return the records by buffer and training, one for each seed."""
    wanted = {
        (buffer, name, seed): planned(part, name, buffer, rates[name], seed)
        for seed in range(part.seeds)
        for buffer in part.buffers
        for name in part.methods
    }
    found = run_missing(wanted, folder)
    return {
        buffer: {name: [found[buffer, name, seed] for seed in range(part.seeds)] for name in part.methods}
        for buffer in part.buffers
    }


def planned(part: Part, name: str, buffer: int, rate: float, seed: int, **more: Any) -> tuple[str, dict[str, Any]]:
    """Return the name of a run's folder, and its flags, with ``more`` of them."""
    own = {"learning_rate": rate, "seed": seed, **more} | ({} if name in NO_BUFFER else {"buffer_size": buffer})
    folder = "-".join(
        [part.name, name.replace(",", "").replace(" ", "_"), *(f"{flag}{value}" for flag, value in own.items())]
    )
    return folder, {**part.flags, **METHODS[name], **own}


def run_missing(
    wanted: Mapping[Any, tuple[str, dict[str, Any]]], folder: Path, *, jobs: int = 2
) -> dict[Any, dict[str, Any]]:
    """Run what has no record yet, ``jobs`` at a time; return the record of each run."""
    missing = {path: flags for path, flags in wanted.values() if not (folder / path / "continual.json").exists()}
    with ThreadPoolExecutor(jobs) as pool:
        for said in pool.map(lambda path: run(folder / path, missing[path]), missing):  # an error cancels the rest
            print(said, flush=True)
    return {key: json.loads((folder / path / "continual.json").read_text()) for key, (path, _) in wanted.items()}


def run(path: Path, flags: Mapping[str, Any]) -> str:
    """Run the recipe into a folder, or resume it there; return a line with its name and seconds.

    Raises:
        RuntimeError: If it fails, other than by divergence.
    """
    started = time.perf_counter()
    command = [sys.executable, str(RECIPE), "--output", str(path), "--resume"]
    command += [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in flags.items()]
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    diverged = done.returncode and DIVERGED in done.stderr
    if diverged:
        (path / "continual.json").write_text(json.dumps(CHANCE))
    elif done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return f"{path.name}: {'diverged, ' if diverged else ''}{time.perf_counter() - started:.0f} s"


def score_rows(where: str, records: Records, rates: Mapping[str, float]) -> list[list[str]]:
    """Return a row of the table of scores for each training."""
    rows = []
    for name, runs in records.items():
        diverged = runs.count(CHANCE)
        title = f"{where}: `{name}`" + (f", {diverged} diverged" if diverged else "")
        averages = [spread(averaged(runs, score)) for score in SCORES]
        falls = [run["forgetting"]["class_il"] for run in runs]
        forgotten = "\N{EN DASH}" if None in falls else spread(falls)
        against = [difference(runs, records["er"], score)[0] if name != "er" else "" for score in SCORES]
        rows.append([title, f"{rates[name]:g}", *averages, forgotten, *against])
    return rows


def ordering_rows(where: str, records: Records) -> list[list[str]]:
    """Return a row of the table of orderings for each ordering of the paper."""
    return [
        [f"{where}: `{better}` over `{worse}`"]
        + [cell for score in SCORES for cell in difference(records[better], records[worse], score)]
        for better, worse in ORDERINGS
        if better in records and worse in records
    ]


def averaged(runs: Sequence[Mapping[str, Any]], score: str) -> list[float]:
    """Return the average accuracy of each run after its last task."""
    return [run["average_accuracy"][score] for run in runs]


def difference(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], score: str) -> tuple[str, str]:
    """Return the mean paired difference of the average accuracies with its 95% interval, and the verdict."""
    pairs = zip(averaged(first, score), averaged(second, score), strict=True)
    found = interval_of([one - other for one, other in pairs])
    ends = "" if found.low is None else f" [{found.low:+.4f}, {found.high:+.4f}]"
    return f"{found.mean:+.4f}{ends}", judge(found)


if __name__ == "__main__":
    main()
