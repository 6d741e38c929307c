"""Runs of a recipe in processes that a test may kill; they fork from a process that has imported the recipe."""

import json
import multiprocessing
import os
import random
import signal
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from helpers.process_groups import free_port
from pml_supcon.training import app as train
from pml_supcon.training import loop

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pml_supcon.training.app", "torch._dynamo"])
TIMES = ("seconds/", "version/", "date", "commit", "peak_memory_mb")
TIMES += ("train/images_per_second", "train/data_wait", "images_per_second", "data_wait", "miner/seconds")


class Run:
    """A run of a recipe on one process or several."""

    def __init__(self, arguments, *, processes=1, before=None, main=train.main):
        port = free_port()
        self.processes = [
            CONTEXT.Process(target=_run, args=(main, list(map(str, arguments)), rank, processes, port, before))
            for rank in range(processes)
        ]
        for process in self.processes:
            process.start()

    def wait(self, seconds=600):
        """Return the exit status of each process."""
        for process in self.processes:
            process.join(seconds)
        return [process.exitcode for process in self.processes]

    def send(self, number):
        """Send a signal to all processes."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    @property
    def alive(self):
        """True if a process still runs."""
        return any(process.is_alive() for process in self.processes)


def _run(main, arguments, rank, processes, port, before):
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if processes > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if before is not None:
        before()
    main(arguments)


def steps_in(folder):
    """Return the number of steps in the history of a run."""
    file = Path(folder) / "history.jsonl"
    return file.read_text().count('"loss"') if file.exists() else 0


def kill_ten_times(arguments, folder, *, processes=1, seed=0, apart=4):
    """Start a run, resume it after each of ten kills, and let it end.

    A process kills itself after a random step, or soon after one, so that the time does not depend on a busy machine.
    """
    moments, kills = random.Random(seed), 0
    for index in range(10):
        kill = partial(die_after, moments.randint(1, apart), 0 if index % 2 else moments.uniform(0, 0.05))
        run = Run([*arguments, "--output", folder, "--resume"], processes=processes, before=kill)
        if -signal.SIGKILL not in run.wait():
            break
        kills += 1
    assert kills >= 5, "the run ended before it was killed five times"
    assert Run([*arguments, "--output", folder, "--resume"], processes=processes).wait() == [0] * processes


def die_after(steps, seconds):
    """Kill this process some seconds after this number of steps."""
    left, step = [steps], loop.take_step

    def take_step(*more):
        outputs = step(*more)
        left[0] -= 1
        if left[0] == 0:
            kill = partial(os.kill, os.getpid(), signal.SIGKILL)
            threading.Timer(seconds, kill).start() if seconds else kill()
        return outputs

    loop.take_step = take_step


def results_of(folder):
    """Return what must not depend on kills: metrics, losses, weights of encoder, head and the last checkpoint."""
    folder = Path(folder)
    rows = [untimed(json.loads(line)) for line in (folder / "history.jsonl").read_text().splitlines()]
    return {
        "metrics": untimed(json.loads((folder / "metrics.json").read_text())),
        "rows": rows,
        "encoder": load_file(folder / "encoder" / "model.safetensors"),
        "head": load_file(folder / "head.safetensors"),
        "weights": load_file(sorted((folder / "checkpoints").glob("step-*"))[-1] / "weights.safetensors"),
    }


def untimed(values):
    """Return the values without times and versions."""
    return {name: value for name, value in values.items() if not name.startswith(TIMES)}


def assert_same(one, other):
    """Assert equality to the last bit, which holds on one machine with one thread and the same number of processes."""
    for name in ("metrics", "rows"):
        assert one[name] == other[name]
    for name in ("encoder", "head", "weights"):
        assert one[name].keys() == other[name].keys()
        for key, tensor in one[name].items():
            assert torch.equal(tensor, other[name][key]), key
