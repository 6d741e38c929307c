"""The hand-over between tasks: weights, the past model, and the images of the last classifier."""

import pytest
import torch

from pml_supcon.training.continual import train
from pml_supcon.training.continual.app import main

TINY = ["--data", "digits?classes=0-5", "--num-tasks", "3", "--max-train", "60", "--max-test", "30"]
TINY += ["--batch-size", "20", "--epochs", "1", "--warmup-epochs", "0", "--encoder-args.channels", "[8, 8, 8, 8]"]


def copied(module):
    return None if module is None else {name: value.clone() for name, value in module.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def stages(monkeypatch):
    """Note for each stage its weights and keys at the start, the weights of the stage before, and the stage itself."""
    noted, build = [], train.build_task_stage

    def build_and_note(work, context, number, previous):
        stage = build(work, context, number, previous)
        keys = None if stage.key_encoder is None else stage.key_encoder.encoder
        before = None if previous is None else (copied(previous.model), copied(previous.scored()))
        noted.append((copied(stage.model), copied(keys), before, stage))
        return stage

    monkeypatch.setattr(train, "build_task_stage", build_and_note)
    return noted


def test_a_task_starts_from_the_model_before_and_its_frozen_average(stages, tmp_path):
    main([*TINY, "--buffer-size", "12", "--ema", "0.9", "--batch-size", "5", "--output", str(tmp_path / "run")])
    (first, keys, before, stage), *later = stages
    assert keys is None
    assert before is None
    assert not equal(first, stage.model.state_dict())
    assert len(later) == 2
    for weights, keys, (model, averaged), stage in later:
        assert equal(weights, model)
        assert equal(keys, averaged)
        assert not equal(model, averaged)
        assert equal(keys, stage.key_encoder.encoder.state_dict())  # after the task too
        assert not equal(weights, stage.model.state_dict())


@pytest.mark.parametrize("options", [["--distill-weight", "0"], ["--method", "er"]])
def test_without_distillation_there_is_no_past_model(options, stages, tmp_path):
    main([*TINY, "--buffer-size", "12", *options, "--output", str(tmp_path / "run")])
    assert [keys for _, keys, _, _ in stages] == [None] * 3
    assert all(equal(weights, before[0]) for weights, _, before, _ in stages[1:])


@pytest.mark.parametrize("method", ["co2l", "supcon_replay"])
def test_the_last_classifier_is_fitted_on_the_images_of_its_method(method, tmp_path, monkeypatch):
    """Co2L has the task's images and the buffer before it; supcon_replay has the buffer alone, with the task's draw."""
    noted, held, end, score = [], [], train.end_task, train.score_tasks

    def note_and_end(work, context, stage):
        buffer = work.progress.buffer
        before = buffer.indices.tolist()
        end(work, context, stage)
        held.append((work.new_places(stage.number).tolist(), before, buffer.indices.tolist()))

    def note_and_score(*arguments):
        noted.append(arguments[-1].tolist())
        return score(*arguments)

    monkeypatch.setattr(train, "end_task", note_and_end)
    monkeypatch.setattr(train, "score_tasks", note_and_score)
    main([*TINY, "--buffer-size", "12", "--method", method, "--output", str(tmp_path / "run")])
    assert [(len(new), len(before), len(after)) for new, before, after in held] == [
        (20, 0, 12),
        (20, 12, 12),
        (20, 12, 12),
    ]
    for places, (new, before, after) in zip(noted, held, strict=True):
        assert sorted(places) == sorted(new + before if method == "co2l" else after)
