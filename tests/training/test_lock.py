"""A folder belongs to one process at a time, and a refused or failed start leaves nothing."""

import json
import os
import signal
import time

import pytest
import yaml
from helpers.run_processes import CONTEXT, Run

from pml_supcon.training.app import main
from pml_supcon.training.lock import NAME, FolderLock

TINY = ["--max-train", "60", "--max-test", "20", "--batch-size", "30", "--epochs", "2", "--head-dim", "8"]
TINY += ["--encoder-args.channels", "[8, 8, 8, 8]", "--pictures", "false"]


def take_in_turn(folder, counter, until):
    """Take the lock again and again; count in a file, which loses counts unless the lock excludes others."""
    done = 0
    while done < until:
        lock = FolderLock(folder)
        try:
            lock.take()
        except FileExistsError:
            continue
        value = int(counter.read_text())
        os.sched_yield()
        counter.write_text(str(value + 1))
        lock.release()
        done += 1


def test_processes_exclude_each_other_while_each_removes_the_file(tmp_path):
    counter, folder = tmp_path / "counter", tmp_path / "runs" / "run"
    counter.write_text("0")
    others = [CONTEXT.Process(target=take_in_turn, args=(folder, counter, 30)) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert [other.exitcode for other in others] == [0, 0, 0]
    assert counter.read_text() == "90"
    assert not (folder / NAME).exists()


def hold(folder, held):
    lock = FolderLock(folder)  # which holds the lock while it lives
    lock.take()
    held.set()
    time.sleep(600)


def test_a_killed_holder_frees_the_lock(tmp_path):
    held = CONTEXT.Event()
    other = CONTEXT.Process(target=hold, args=(tmp_path / "run", held))
    other.start()
    assert held.wait(60)
    lock = FolderLock(tmp_path / "run")
    with pytest.raises(FileExistsError, match="is in use by another process"):
        lock.take()
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    lock.take()
    (tmp_path / "run" / "metrics.json").touch()
    lock.release()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.json"]


def run_tiny(arguments, barrier, errors):
    """Start a run at the same moment as others, with its error messages in a file."""
    handle = os.open(errors, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 2)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    barrier.wait(120)
    main(arguments)


def start_pair(tmp_path):
    """Start two runs with other seeds on one folder; return the exit status and the errors by seed."""
    barrier, found = CONTEXT.Barrier(2), {}
    for seed in (5, 6):
        arguments = [*TINY, "--seed", str(seed), "--output", str(tmp_path / "run")]
        process = CONTEXT.Process(target=run_tiny, args=(arguments, barrier, tmp_path / f"{seed}.err"))
        process.start()
        found[seed] = process
    for process in found.values():
        process.join(300)
    return {seed: (process.exitcode, (tmp_path / f"{seed}.err").read_text()) for seed, process in found.items()}


@pytest.mark.parametrize("pair", [0, *(pytest.param(each, marks=pytest.mark.slow) for each in range(1, 10))])
def test_of_two_runs_started_at_once_one_wins_and_the_other_says_so(pair, tmp_path):
    found = start_pair(tmp_path)
    [winner] = [seed for seed, (status, _) in found.items() if status == 0]
    [said] = [errors.splitlines()[-1] for seed, (_, errors) in found.items() if seed != winner]
    assert said.startswith(f"train.py: error: {tmp_path / 'run'} ")
    assert "is in use by another process" in said or "already holds a run" in said
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["seed"] == winner
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["seed"] == winner
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert not (tmp_path / "run" / NAME).exists()


def test_the_other_processes_of_a_group_learn_of_a_refused_lock(tmp_path):
    held = CONTEXT.Event()
    holder = CONTEXT.Process(target=hold, args=(tmp_path / "run", held))
    holder.start()
    assert held.wait(60)
    started = Run([*TINY, "--output", tmp_path / "run"], processes=2)
    assert started.wait(120) == [1, 1]
    holder.kill()
    holder.join()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [NAME]  # of the killed holder
    assert Run([*TINY, "--output", tmp_path / "run"]).wait() == [0]  # which is no run


def test_a_link_to_nothing_is_no_folder_of_a_run(tmp_path, capsys):
    (tmp_path / "run").symlink_to("/no/such/folder")
    with pytest.raises(SystemExit):
        main([*TINY, "--output", str(tmp_path / "run")])
    assert f"Expected --output to be a folder, but {tmp_path / 'run'} is a link to nothing" in capsys.readouterr().err


@pytest.mark.parametrize("resume", ["false", "true"])
@pytest.mark.parametrize(
    "wrong", [["--data", "imagefolder:/no/such"], ["--max-per-class", "2"], ["--optimizer-args.no_such", "1"]]
)
def test_a_failed_start_leaves_no_folder_and_no_lock(wrong, resume, tmp_path, capsys):
    output = tmp_path / "runs" / "run"
    with pytest.raises(SystemExit):
        main([*TINY, "--output", str(output), "--resume", resume, *wrong])
    assert not (tmp_path / "runs").exists()
    output.mkdir(parents=True)
    (output / "notes.txt").touch()
    with pytest.raises(SystemExit):
        main([*TINY, "--output", str(output), "--resume", resume, *wrong])
    assert [path.name for path in output.iterdir()] == ["notes.txt"]
