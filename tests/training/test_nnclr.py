"""NNCLR in `train.py`: its outputs, the neighbours' accuracy in the history, and resumes with the queue."""

import json
import signal
from functools import partial

import pytest
import torch
from helpers.run_processes import Run, assert_same, die_after, results_of
from helpers.small_runs import TINY
from safetensors.torch import load_file

from pml_supcon.losses import NearestNeighbourLoss, SupConLossOut
from pml_supcon.models import PredictionHead, ProjectionHead, load_head
from pml_supcon.training.config import TrainSettings
from pml_supcon.training.methods import build_criterion, build_top, part_of

NNCLR = [*TINY, "--method", "nnclr", "--predictor-width", "32", "--pictures", "false", "--epochs", "3"]
QUEUE = "criterion.loss.loss.queue_"


def settings(**options):
    return TrainSettings(method="nnclr", head_dim=4, predictor_width=8, **options)


def test_a_run_records_the_accuracy_of_the_neighbours_and_saves_the_queue(tmp_path):
    folder = tmp_path / "run"
    assert Run([*NNCLR, "--queue-size", "100", "--output", folder]).wait() == [0]
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    found = [row["nn_accuracy"] for row in rows if "images_per_second" in row]
    assert len(found) == 3
    assert all(0 < accuracy <= 1 for accuracy in found)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["train/nn_accuracy"] == found[-1]
    assert metrics["queue_size"] == 100
    assert type(load_head(folder / "head.safetensors")) is ProjectionHead
    saved = load_file(sorted((folder / "checkpoints").glob("step-*"))[-1] / "weights.safetensors")
    torch.testing.assert_close(saved[f"{QUEUE}embeddings"].norm(dim=1), torch.ones(100))
    assert set(saved[f"{QUEUE}labels"].tolist()) == set(range(10))
    assert saved["criterion.loss.loss._extra_state"].tolist() == [60, 100, 1]  # 360 of 3 epochs of 120 images
    assert saved["model.top.predictor.0.weight"].shape == (32, 16)


def test_the_top_has_projections_and_predictions_of_them():
    top = build_top(settings(), width=6, num_classes=3).eval()
    features = torch.randn(5, 6)
    outputs = top(features)
    assert torch.equal(outputs[:, :4], top.head(features))
    assert torch.equal(outputs[:, 4:], top.predictor(outputs[:, :4]))
    assert part_of(top, ProjectionHead) is top.head
    assert part_of(top, PredictionHead) is top.predictor
    assert part_of(top, torch.nn.Linear) is None


@pytest.mark.parametrize("neighbours", ["nearest", "same_class", "positives"])
def test_the_criterion_is_the_loss_on_the_two_parts_of_the_outputs(neighbours):
    criterion = build_criterion(settings(neighbours=neighbours, batch_size=6, queue_size=64, temperature=0.2))
    expected = NearestNeighbourLoss(SupConLossOut(0.2), 4, 64, neighbours=neighbours)
    labels = torch.arange(6) % 3
    for _ in range(2):
        outputs = torch.randn(6, 2, 8, requires_grad=True)
        value = criterion(outputs, labels)
        assert value == expected(outputs[..., 4:], labels, projections=outputs[..., :4])
        assert torch.equal(criterion.embeddings(outputs), outputs[..., :4])
        value.backward()
        assert not outputs.grad[..., :4].any()
        assert outputs.grad[..., 4:].any()
    assert criterion.nn_accuracy() == expected.nn_accuracy


@pytest.mark.parametrize("labels", [torch.rand(6, 3) > 0.5, torch.rand(6, 3)], ids=["sets", "shares"])
def test_labels_without_classes_are_not_counted(labels):
    criterion = build_criterion(settings())
    for _ in range(2):
        criterion(torch.randn(6, 2, 8), labels)
        assert criterion.nn_accuracy() is None
    assert build_criterion(TrainSettings(method="simclr")).nn_accuracy() is None


def test_the_queue_has_room_for_a_batch_by_default():
    assert settings().queue_rows == 4096
    assert settings(batch_size=6000).queue_rows == 6000
    assert settings(queue_size=256).queue_rows == 256
    assert TrainSettings().queue_rows is None
    assert build_criterion(settings()).loss.loss.queue_size == 4096


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_resumes_with_its_queue(processes, tmp_path):
    arguments = [*NNCLR, "--queue-size", "100", "--save-every", "1", "--learn-temperature"]
    assert Run([*arguments, "--output", tmp_path / "whole"], processes=processes).wait() == [0] * processes
    killed = [*arguments, "--output", tmp_path / "killed", "--resume"]
    assert -signal.SIGKILL in Run(killed, processes=processes, before=partial(die_after, 7, 0)).wait()
    assert Run(killed, processes=processes).wait() == [0] * processes
    assert_same(results_of(tmp_path / "whole"), results_of(tmp_path / "killed"))
