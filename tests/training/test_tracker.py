"""Trackers that cannot start, fail later, or write files: stand-ins for those of Accelerate."""

import json
import os
from typing import ClassVar

import accelerate.accelerator
import pytest
from accelerate.tracking import GeneralTracker
from helpers.small_runs import TINY

from pml_supcon.training import run, train
from pml_supcon.training.app import main


class StandIn(GeneralTracker):
    """A tracker that fails in one of its methods, as wandb's without a login or a network."""

    name = "wandb"
    requires_logging_directory = False
    failing = ""
    made: ClassVar[list] = []

    def __init__(self, name, **options):
        super().__init__()
        self.options, self.logged, self.finished = options, [], 0
        self.made.append(self)

    @property
    def tracker(self):
        return self.run

    def _do(self, what):
        if what == self.failing:
            raise RuntimeError(f"api_key not configured\nin {what}")

    def start(self):
        self._do("start")
        self.run = object()
        os.makedirs(os.path.join(self.options["dir"], "wandb"))

    def store_init_configuration(self, values):
        self._do("store")

    def log(self, values, step=None, **options):
        self._do("log")
        self.logged.append(step)

    def finish(self):
        assert self.run
        self._do("finish")
        self.finished += 1


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(run, "get_available_trackers", lambda: ["wandb"])
    monkeypatch.setattr(train, "filter_trackers", lambda name, folder: [name])
    monkeypatch.setitem(accelerate.accelerator.LOGGER_TYPE_TO_CLASS, "wandb", StandIn)
    monkeypatch.setattr(StandIn, "made", [])
    return StandIn


def run_with_tracker(folder):
    main([*TINY, "--epochs", "2", "--pictures", "false", "--tracker", "wandb", "--output", str(folder)])


def test_its_files_are_in_the_folder_of_the_run(stand_in, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_with_tracker(tmp_path / "run")
    [tracker] = stand_in.made
    assert (tmp_path / "run" / "wandb").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert tracker.finished == 1
    assert tracker.logged[-1] == 8
    assert "note: " not in capsys.readouterr().err


@pytest.mark.parametrize("method", ["start", "store"])
def test_one_that_cannot_start_is_one_line(method, stand_in, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stand_in, "failing", method)
    with pytest.raises(SystemExit) as ended:
        run_with_tracker(tmp_path / "run")
    assert ended.value.code == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if "tracker" in line]
    assert line.startswith("train.py: error: Expected --tracker wandb to start, but: RuntimeError('api_key not conf")
    assert [tracker.finished for tracker in stand_in.made] == [0]


@pytest.mark.parametrize(("method", "text"), [("log", "failed at step"), ("finish", "did not finish")])
def test_one_that_fails_later_is_a_note(method, text, stand_in, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stand_in, "failing", method)
    run_with_tracker(tmp_path / "run")
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert text in line
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["train/steps"] == 8
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 10
