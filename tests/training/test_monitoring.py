"""Monitoring: the history file and its tracker, alignment and uniformity against loops, and the timer of an epoch."""

import json
import math
from statistics import mean
from types import SimpleNamespace

import pytest
import torch

from pml_supcon.training import monitoring
from pml_supcon.training.monitoring import EpochTimer, History, alignment, alignment_and_uniformity, uniformity

# history

STEPS = [{"stage": 1, "epoch": 1 + step // 3, "step": step, "loss": 1 / step} for step in (1, 2, 3, 4)]
EPOCH = {"stage": 1, "epoch": 1, "step": 3, "images_per_second": 10.0, "data_wait": 0.5}
OTHER = {"stage": 2, "epoch": 1, "step": 5, "loss": 7.0, "learning_rate": 0.1}
ROWS = [*STEPS[:3], EPOCH, STEPS[3], OTHER]


def open_history(path, *, main=True):
    """Return a history, and the list of what its tracker logs."""
    logged = []
    log = lambda values, step: logged.append((step, values))  # noqa: E731
    return History(path, SimpleNamespace(is_main_process=main, log=log)), logged


@pytest.fixture
def history(tmp_path):
    history, _ = open_history(tmp_path / "history.jsonl")
    history.add(ROWS)
    return history


def test_rows_are_read_as_they_were_written(history):
    assert history.rows() == [json.loads(line) for line in history.path.read_text().splitlines()] == ROWS
    assert history.losses(1) == [1, 1 / 2, 1 / 3, 1 / 4]
    assert history.losses(2) == [7.0]
    assert history.last_epoch(1) == EPOCH
    assert history.last_epoch(2) == {}
    later = EPOCH | {"epoch": 2, "data_wait": 0.1}
    history.add([later])
    assert history.last_epoch(1) == later


def test_a_missing_file_has_no_rows(tmp_path):
    history, _ = open_history(tmp_path / "none.jsonl")
    assert history.rows() == history.losses(1) == []
    history.cut(3)
    assert not history.path.exists()


@pytest.mark.parametrize("kept", [0, 4, 6])
def test_cut_drops_the_rows_after_a_checkpoint(kept, history):
    other, _ = open_history(history.path.with_name("other.jsonl"))
    other.add(ROWS[:kept])
    saved = other.to_disk()
    other.path.unlink(missing_ok=True)
    history.cut(saved["bytes"])
    assert history.to_disk() == saved
    history.add([OTHER])
    assert history.rows() == [*ROWS[:kept], OTHER]
    assert [path.name for path in history.path.parent.iterdir()] == ["history.jsonl"]


@pytest.mark.parametrize("left", ['{"stage": 1, "epoch": 2, "step": 4, "loss": ', "\x00\x00", '{"loss": 0.1}\n'])
def test_a_history_that_changes_during_the_run_is_an_error(left, history):
    saved = history.to_disk()
    with history.path.open("a") as file:
        file.write(left)
    with pytest.raises(OSError, match=r"history\.jsonl was changed during the run"):
        history.losses(1)
    resumed, _ = open_history(history.path)
    resumed.cut(saved["bytes"])
    assert resumed.rows() == ROWS


def test_only_the_main_process_writes_and_logs(tmp_path):
    history, logged = open_history(tmp_path / "history.jsonl")
    history.add(ROWS)
    assert [step for step, _ in logged] == [1, 2, 3, 3, 4, 5]
    assert logged[0][1] == {"stage1/loss": 1.0, "epoch": 1}
    assert logged[3][1] == {"stage1/images_per_second": 10.0, "stage1/data_wait": 0.5, "epoch": 1}
    assert logged[5][1] == {"stage2/loss": 7.0, "stage2/learning_rate": 0.1, "epoch": 1}
    other, logged = open_history(history.path, main=False)
    other.add([OTHER])
    other.cut(0)
    assert history.rows() == ROWS
    assert logged == []


# alignment and uniformity


def squared_distances(embeddings, labels=None):
    """Compute the distances of all pairs of unit rows, or of pairs with one label, by loops."""
    rows = [[x / math.hypot(*row) for x in row] for row in embeddings.tolist()]
    pairs = [(i, j) for i in range(len(rows)) for j in range(i) if labels is None or labels[i] == labels[j]]
    return [sum((x - y) ** 2 for x, y in zip(rows[i], rows[j], strict=True)) for i, j in pairs]


def expected(embeddings, labels):
    """Return alignment and uniformity by loops."""
    potentials = [math.exp(-2 * distance) for distance in squared_distances(embeddings)]
    return mean(squared_distances(embeddings, labels.tolist())), math.log(mean(potentials))


@pytest.mark.parametrize(("number", "width", "classes"), [(2, 1, 1), (7, 3, 2), (24, 16, 5)])
def test_against_loops(number, width, classes):
    embeddings, labels = torch.randn(number, width) * 5, torch.arange(number) % classes
    found = float(alignment(embeddings, labels)), float(uniformity(embeddings))
    assert found == pytest.approx(expected(embeddings, labels), abs=1e-5)


def test_bounds():
    same, opposite = torch.ones(4, 3), torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    assert float(alignment(same, torch.zeros(4))) == pytest.approx(0, abs=1e-6)
    assert float(uniformity(same)) == pytest.approx(0, abs=1e-6)
    assert float(alignment(opposite, torch.zeros(2))) == pytest.approx(4)
    assert float(uniformity(opposite)) == pytest.approx(-8)


def test_half_precision_is_computed_in_full():
    embeddings, labels = torch.randn(16, 8).bfloat16(), torch.arange(16) % 4
    assert float(alignment(embeddings, labels)) == pytest.approx(float(alignment(embeddings.float(), labels)))
    assert uniformity(embeddings).dtype == torch.float32


def test_undefined_values_are_omitted():
    assert alignment_and_uniformity(None, torch.arange(3)) == {}
    assert alignment_and_uniformity(torch.randn(1, 1, 4), torch.zeros(1)) == {}
    assert set(alignment_and_uniformity(torch.randn(3, 1, 4), torch.arange(3))) == {"uniformity"}


def test_views_of_a_sample_share_its_label():
    outputs, labels = torch.randn(5, 3, 4, requires_grad=True), torch.tensor([0, 1, 0, 2, 2])
    found = alignment_and_uniformity(outputs, labels)
    rows = outputs.detach().transpose(0, 1).flatten(0, 1)  # view by view: the order does not matter
    assert list(found.values()) == pytest.approx(expected(rows, labels.repeat(3)), abs=1e-5)


def test_a_large_batch_is_cut_to_whole_samples(monkeypatch):
    monkeypatch.setattr(monitoring, "ROWS", 7)
    outputs, labels = torch.randn(9, 2, 4), torch.arange(9) % 2
    assert alignment_and_uniformity(outputs, labels) == alignment_and_uniformity(outputs[:3], labels[:3])
    assert len(alignment_and_uniformity(torch.randn(4, 8, 4), torch.arange(4))) == 2


def test_timer_separates_waiting_from_work(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(monitoring, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def slow():
        for batch in "abc":
            clock[0] += 2
            yield batch
        clock[0] += 1  # the timer also counts the wait for the end

    timer, came = EpochTimer(), []
    for batch in timer.timed(slow()):
        came.append(batch)
        clock[0] += 5
    assert came == ["a", "b", "c"]
    assert timer.throughput(44) == {"images_per_second": pytest.approx(2), "data_wait": pytest.approx(7 / 22)}
