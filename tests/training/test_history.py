"""The history of a run: what is written, cut off by a kill, dropped when it goes on, and told to a tracker."""

import json
from types import SimpleNamespace

import pytest

from pml_supcon.training.monitoring import History

STEPS = [{"stage": 1, "epoch": 1 + step // 3, "step": step, "loss": 1 / step} for step in (1, 2, 3, 4)]
EPOCH = {"stage": 1, "epoch": 1, "step": 3, "images_per_second": 10.0, "data_wait": 0.5}
OTHER = {"stage": 2, "epoch": 1, "step": 5, "loss": 7.0, "learning_rate": 0.1}


class Accelerator:
    """Takes note of what a tracker would be told."""

    def __init__(self, *, main=True):
        self.is_main_process = main
        self.told = []

    def log(self, values, step):
        self.told.append((step, values))


@pytest.fixture
def history(tmp_path):
    history = History(tmp_path / "history.jsonl", Accelerator())
    history.add(STEPS[:3])
    history.add([EPOCH, STEPS[3], OTHER])
    return history


def test_rows_come_back_as_they_were_written(history):
    assert history.rows() == [*STEPS[:3], EPOCH, STEPS[3], OTHER]
    assert [json.loads(line) for line in history.path.read_text().splitlines()] == history.rows()


def test_losses_and_last_epoch_of_a_stage(history):
    assert history.losses(1) == [1, 1 / 2, 1 / 3, 1 / 4]
    assert history.losses(2) == [7.0]
    assert history.last_epoch(1) == EPOCH
    assert history.last_epoch(2) == {}
    later = EPOCH | {"epoch": 2, "data_wait": 0.1}
    history.add([later])
    assert history.last_epoch(1) == later


def test_a_file_that_is_not_there_has_no_rows(tmp_path):
    history = History(tmp_path / "none.jsonl", Accelerator())
    assert history.rows() == history.losses(1) == []
    assert history.last_epoch(1) == {}
    history.cut(3)
    assert not history.path.exists()


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (2, 2), (3, 4), (4, 5), (9, 6)])
def test_what_came_after_a_step_is_dropped(step, kept, history):
    before = history.rows()
    history.cut(step)
    assert history.rows() == before[:kept]
    history.add([OTHER])
    assert history.rows() == [*before[:kept], OTHER]
    assert [path.name for path in history.path.parent.iterdir()] == ["history.jsonl"]


@pytest.mark.parametrize("left", ['{"stage": 1, "st', '{"stage": 1, "epoch": 2, "step": 4, "loss": ', "\x00\x00"])
def test_a_line_that_a_kill_cut_off_is_none(left, history):
    before = history.rows()
    with history.path.open("a") as file:
        file.write(left)
    assert history.rows() == before
    history.cut(3)  # as a run does that goes on
    history.add([STEPS[3]])
    assert history.rows() == [*before[:4], STEPS[3]]


def test_a_tracker_is_told_by_stage(history):
    told = history.accelerator.told
    assert [step for step, _ in told] == [1, 2, 3, 3, 4, 5]
    assert told[0][1] == {"stage1/loss": 1.0, "epoch": 1}
    assert told[3][1] == {"stage1/images_per_second": 10.0, "stage1/data_wait": 0.5, "epoch": 1}
    assert told[5][1] == {"stage2/loss": 7.0, "stage2/learning_rate": 0.1, "epoch": 1}


def test_other_processes_write_nothing(history):
    other = History(history.path, Accelerator(main=False))
    before = history.path.read_text()
    other.add([OTHER])
    other.cut(0)
    assert history.path.read_text() == before
    assert other.accelerator.told == []
    nowhere = History(history.path.parent / "other.jsonl", SimpleNamespace(is_main_process=False))
    nowhere.add(STEPS)
    assert not nowhere.path.exists()
