"""Resumed runs equal uninterrupted ones: after kills and signals; damaged and foreign checkpoints raise."""

import json
import os
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from helpers.run_processes import Run, assert_same, kill_ten_times, results_of, steps_in
from safetensors import SafetensorError
from safetensors.torch import load_file

from pml_supcon import _files
from pml_supcon.training import checkpoint as checkpoints
from pml_supcon.training import digests, lock
from pml_supcon.training import train as engine
from pml_supcon.training.app import main

TINY = ["--max-train", "120", "--max-test", "60", "--batch-size", "30", "--epochs", "12", "--encoder-args.channels"]
TINY += ["[8, 8, 8, 8]", "--head-dim", "16", "--save-every", "3", "--learning-rate", "0.05", "--pictures", "false"]
LARGE = ["--queue-size", "120", "--momentum", "0.9", "--chunk-size", "8", "--ema", "0.9"]
MINED = ["--method", "triplet", "--miner", "capped_positives", "--optimizer", "adamw", "--held-out", "0.2"]
MINED += ["--encoder-args.drop_rate", "0.2", "--workers", "1", "--label-noise", "0.1"]
STAGES = ["--epochs", "4", "--stage2-optimizer", "rmsprop", "--stage2-epochs", "30", "--stage2-learning-rate", "0.001"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "processes"),
    [(LARGE, 1), (MINED, 1), (STAGES, 1), (LARGE, 2)],
    ids=["queue-chunks-ema", "miner-dropout-workers", "stage2", "two-processes"],
)
def test_ten_kills_change_nothing(options, processes, tmp_path):
    assert Run([*TINY, *options, "--output", tmp_path / "whole"], processes=processes).wait() == [0] * processes
    apart = 12 if options is STAGES else 4
    kill_ten_times([*TINY, *options], tmp_path / "killed", processes=processes, apart=apart)
    assert_same(results_of(tmp_path / "whole"), results_of(tmp_path / "killed"))


def die_in_third_checkpoint():
    written, save = [], _files.save_file

    def save_half(tensors, path, **options):
        save(tensors, path, **options)
        written.append(path)
        if len(written) == 3:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    _files.save_file = save_half


def die_before_rename():
    replace = os.replace

    def kill_first(source, target):
        if str(source).endswith("00000006.partial"):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    checkpoints.os.replace = kill_first


@pytest.mark.parametrize("dying", [die_in_third_checkpoint, pytest.param(die_before_rename, marks=pytest.mark.slow)])
def test_a_kill_during_a_checkpoint_leaves_the_one_before(dying, tmp_path):
    arguments = [*TINY, "--epochs", "4", "--resume"]  # which starts a run if there is none
    assert Run([*arguments, "--output", tmp_path / "whole"]).wait() == [0]
    output = ["--output", tmp_path / "killed"]
    assert Run([*arguments, *output], before=dying).wait() == [-signal.SIGKILL]
    left = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert any(name.startswith(".") for name in left)
    assert any(name.startswith("step-") for name in left)
    assert Run([*arguments, *output]).wait() == [0]
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))
    assert_same(results_of(tmp_path / "whole"), results_of(tmp_path / "killed"))


@pytest.mark.parametrize(
    ("number", "processes"),
    [(signal.SIGTERM, 1), pytest.param(signal.SIGINT, 2, marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_ends(number, processes, tmp_path):
    arguments = [*TINY, "--save-every", "1000", "--epochs", "40"]  # long enough for the signal
    run = Run([*arguments, "--output", tmp_path / "run"], processes=processes)
    while run.alive and steps_in(tmp_path / "run") < 5:  # rows are written at the end of an epoch
        time.sleep(0.01)
    os.kill(run.processes[-1].pid, number)  # only one process receives it
    assert run.wait() == [128 + number] * processes
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert len(saved) == 1
    assert steps_in(tmp_path / "run") == int(saved[0].removeprefix("step-"))
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert Run([*arguments, "--output", tmp_path / "run", "--resume"], processes=processes).wait() == [0] * processes
    assert steps_in(tmp_path / "run") == 160


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Return an unfinished run with two checkpoints."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert Run([*TINY, "--epochs", "3", "--output", folder], before=die_before_metrics).wait() == [-signal.SIGKILL]
    return folder


def die_before_metrics():
    engine.score_and_save = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)


def files_of(folder):
    """Return the content of all files, without the lock that a killed run leaves."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != lock.NAME}


def refused(folder, capsys, *more):
    """Return the error of a resume, which changes no file."""
    before = files_of(folder)
    with pytest.raises(SystemExit) as ended:
        main([*TINY, "--epochs", "3", "--output", str(folder), "--resume", *more])
    assert ended.value.code == 1
    assert files_of(folder) == before
    return capsys.readouterr().err.splitlines()[-1]


def newest(run):
    """Return the folder of the newest checkpoint."""
    return sorted((run / "checkpoints").iterdir())[-1]


def replace_state(checkpoint, state):
    """Replace the state of a checkpoint, and its digest."""
    torch.save(state, checkpoint / "state.pt")
    about = json.loads((checkpoint / "checkpoint.json").read_text())
    about["files"]["state.pt"] = digests.digest_of_file(checkpoint / "state.pt")
    write_about(checkpoint, about)


def write_about(checkpoint, about):
    """Write the fields of `checkpoint.json` with their digest."""
    del about["sha256"]
    (checkpoint / "checkpoint.json").write_text(json.dumps(digests.sealed(about)))


@pytest.fixture
def copied(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt"])
def test_a_damaged_checkpoint_raises(name, copied, capsys):
    file = newest(copied) / name
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert "with another digest" in refused(copied, capsys)
    os.truncate(file, size - 100)
    message = refused(copied, capsys)
    assert f"{file} is not what was written: expected {size} bytes, but got {size - 100} bytes" in message
    assert f"Remove {file.parent} to resume from the previous checkpoint" in message


@pytest.mark.parametrize("text", ["", "[]", '{"format": "other"}', '{"format": "pml_supcon checkpoint 2"}'])
def test_a_foreign_checkpoint_raises(text, copied, capsys):
    (newest(copied) / "checkpoint.json").write_text(text)
    assert f"{newest(copied) / 'checkpoint.json'} is not what was written" in refused(copied, capsys)
    for record in ({}, {"format": "other"}, {"format": "pml_supcon checkpoint 2"}):  # with digests of their own
        write_about(newest(copied), {**record, "sha256": None})
        assert "is not a checkpoint of this package" in refused(copied, capsys)


def test_a_checkpoint_under_the_name_of_another_step_raises(copied, capsys):
    newest(copied).rename(copied / "checkpoints" / "step-00000099")
    assert "it is of step 12" in refused(copied, capsys)


def test_a_pickle_is_never_executed(copied, capsys, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    replace_state(newest(copied), Evil())
    assert "is not a checkpoint of this package" in refused(copied, capsys)
    assert not (tmp_path / "executed").exists()


def test_other_settings_raise(copied, capsys):
    message = refused(copied, capsys, "--temperature", "0.2", "--batch-size", "40")
    assert "other settings" in message
    assert "temperature: 0.1 in the checkpoint, 0.2 in this run" in message
    assert "batch_size: 30 in the checkpoint, 40 in this run" in message
    config = yaml.safe_load((copied / "config.yaml").read_text())  # the checkpoint holds its settings too
    (copied / "config.yaml").write_text(yaml.safe_dump(config | {"head_dim": 32}))
    assert "head_dim: 16 in the checkpoint, 32 in this run" in refused(copied, capsys, "--head-dim", "32")


def test_other_labels_raise(copied, capsys):
    """The settings are the same, but the data has changed."""
    state = torch.load(newest(copied) / "state.pt", weights_only=True)
    state["sampler"]["settings"]["labels"] = "0" * 64
    replace_state(newest(copied), state)
    message = refused(copied, capsys)
    assert "does not fit this run" in message
    assert "got other labels of the 120 samples" in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": {"train": 119, "test": 60}}, "train: 120 images now, 119 then"),
        ({"images": {"train": 119, "test": 61}}, "train: 120 images now, 119 then; test: 60 images now, 61 then"),
        ({"labels": "0" * 64}, "the same number of images, but other labels or another order"),
    ],
)
def test_other_images_are_told_by_their_number(change, said, copied, capsys):
    about = json.loads((newest(copied) / "checkpoint.json").read_text())
    write_about(newest(copied), about | change)
    assert f"the data has changed since {newest(copied)} was written: {said}. Restore it" in refused(copied, capsys)


def test_some_settings_may_change_and_a_finished_run_has_nothing_to_do(copied, capsys):
    shutil.rmtree(newest(copied))
    assert Run(["--output", copied, "--resume", "--workers", "1", "--keep", "1"]).wait() == [0]
    assert [path.name for path in (copied / "checkpoints").iterdir()] == ["step-00000012"]
    before = files_of(copied)
    main(["--output", str(copied), "--resume"])
    assert files_of(copied) == before
    assert "linear_probe/top1" in capsys.readouterr().out


def test_another_precision_raises(copied, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    assert "precision=no, but this one has precision=bf16: launch it as before" in refused(copied, capsys)


@pytest.mark.slow
def test_another_number_of_processes_raises(copied):
    before = files_of(copied)
    assert 0 not in Run(["--output", copied, "--resume"], processes=2).wait()
    assert files_of(copied) == before


def test_a_folder_with_parts_of_a_run_raises(copied, capsys):
    (copied / "config.yaml").unlink()
    for more in ([], ["--resume"]):
        before = files_of(copied)
        with pytest.raises(SystemExit):
            main([*TINY, "--output", str(copied), *more])
        assert files_of(copied) == before
        assert "holds checkpoints, history.jsonl of a run, but no config.yaml" in capsys.readouterr().err


def wait_before_scoring():
    def wait(context, *more):
        (context.run.path / "waiting").touch()
        time.sleep(600)

    engine.score_and_save = wait


def test_a_run_belongs_to_one_process(copied, capsys):
    arguments = [*TINY, "--epochs", "3", "--output", str(copied), "--resume"]
    other = Run(arguments, before=wait_before_scoring)
    until = time.monotonic() + 300
    while not (copied / "waiting").exists() and time.monotonic() < until:
        time.sleep(0.05)
    with pytest.raises(SystemExit):
        main(arguments)
    other.send(signal.SIGKILL)
    other.wait()
    assert "is in use by another process" in capsys.readouterr().err
    main(arguments)
    assert (copied / "metrics.json").exists()


def test_ctrl_c_during_scoring_prints_how_to_resume(tmp_path, capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "score_and_save", interrupted)
    with pytest.raises(SystemExit) as ended:
        main([*TINY, "--epochs", "1", "--output", str(tmp_path / "run")])
    assert ended.value.code == 130
    assert f"continue with: --output {tmp_path / 'run'} --resume" in capsys.readouterr().err.splitlines()[-1]


def test_weights_that_are_no_longer_finite_are_never_saved(tmp_path, capsys):
    options = ["--learning-rate", "1e36", "--warmup-epochs", "0", "--save-every", "1"]
    with pytest.raises(SystemExit) as ended:
        main([*TINY, *options, "--output", str(tmp_path / "run")])
    assert ended.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "no longer finite after step" in message or "became" in message
    for path in (tmp_path / "run" / "checkpoints").glob("step-*"):
        assert all(tensor.isfinite().all() for tensor in load_file(path / "weights.safetensors").values())


@pytest.mark.slow
def test_miner_statistics_survive_a_checkpoint_within_an_epoch(tmp_path):
    arguments = [*TINY, "--epochs", "2", *MINED[:4], "--keep", "9"]
    assert Run([*arguments, "--output", tmp_path / "whole"]).wait() == [0]
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for left in (*(tmp_path / "cut" / "checkpoints").iterdir(), tmp_path / "cut" / "metrics.json"):
        if left.name != "step-00000003":  # of 4 in an epoch
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert Run([*arguments, "--output", tmp_path / "cut", "--resume"]).wait() == [0]
    assert_same(results_of(tmp_path / "whole"), results_of(tmp_path / "cut"))


def test_old_checkpoints_are_pruned(tmp_path):
    main([*TINY, "--epochs", "3", "--save-every", "2", "--keep", "3", "--output", str(tmp_path / "run")])
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["step-00000008", "step-00000010", "step-00000012"]


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, capsys, monkeypatch):
    written, save = [], _files.save_file

    def fail_in_third_checkpoint(tensors, path, **options):
        written.append(path)
        if len(written) == 3:
            path.write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tensors, path, **options)

    monkeypatch.setattr(_files, "save_file", fail_in_third_checkpoint)
    with pytest.raises(SystemExit) as ended:
        main([*TINY, "--output", str(tmp_path / "run")])
    assert ended.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    last = tmp_path / "run" / "checkpoints" / "step-00000006"
    assert "the checkpoint of step 9 could not be written" in message
    assert "No space left on device" in message
    assert f"last good checkpoint: {last}" in message
    assert sorted(path.name for path in last.parent.iterdir()) == ["step-00000003", "step-00000006"]
    monkeypatch.undo()
    main([*TINY, "--output", str(tmp_path / "run"), "--resume"])
    assert steps_in(tmp_path / "run") == 48


def test_too_little_space_or_permission_raises_at_the_start(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main([*TINY, "--output", "/proc/run"])
    assert "Expected to write into --output /proc/run" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(SystemExit):
        main([*TINY, "--output", str(tmp_path / "run")])
    assert "Expected room for 2 + 1 checkpoints of about" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
