"""The settings of a continual run: flags and YAML, contradictions, and the settings of each training."""

from pathlib import Path

import pytest

from pml_supcon.training.config import TrainSettings
from pml_supcon.training.continual.settings import (
    ONLY_WITH_METHOD,
    SEED_OF_TASK,
    ContinualSettings,
    parse_settings,
)

VALUES = {"anchors": "all", "replay": False, "head_batch_norm": True, "head_layers": 3, "buffer_size": 100}


def refused(arguments, capsys):
    """Return the one line of error about arguments."""
    with pytest.raises(SystemExit) as ended:
        parse_settings(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("continual.py: error: ")
    return line


def test_defaults_are_those_of_the_class():
    assert parse_settings([]) == ContinualSettings()
    settings = parse_settings([])
    assert (settings.epochs, settings.learning_rate, settings.clip_gradient_norm) == (10, 0.03, 1.0)
    assert settings.encoder == "resnet10t"


def test_flags_and_a_file_agree(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("method: er\ntasks: [[0, 1], [2, cat]]\nbuffer_size: 50\nscenario: task\nepochs: 3\n")
    flags = ["--method", "er", "--tasks", "[[0, 1], [2, cat]]", "--buffer-size", "50", "--scenario", "task"]
    assert parse_settings(["--config", str(file)]) == parse_settings([*flags, "--epochs", "3"])
    assert parse_settings(["--config", str(file), "--epochs", "4"]).epochs == 4


def test_settings_of_a_file_that_a_method_does_not_have_are_left_out(tmp_path, capsys):
    file = tmp_path / "some.yaml"
    file.write_text("distill_weight: 2\nbuffer_size: 50\nhead_dim: 16\ntemperature: 0.2\nepochs: 3\n")
    settings = parse_settings(["--config", str(file), "--method", "finetune"])
    assert settings == ContinualSettings(method="finetune", epochs=3)
    assert "not used with finetune: buffer_size, temperature, distill_weight, head_dim" in capsys.readouterr().err


def test_a_resumed_run_has_the_settings_of_its_folder(tmp_path):
    (tmp_path / "config.yaml").write_text("method: er\nbuffer_size: 50\n")
    settings = parse_settings(["--resume", "--output", str(tmp_path)])
    assert (settings.method, settings.buffer_size) == ("er", 50)


@pytest.mark.parametrize("name", ONLY_WITH_METHOD)
def test_settings_of_some_methods_raise_with_the_others(name):
    value = VALUES.get(name, 2)
    for method in ("co2l", "supcon_replay", "er", "finetune", "joint"):
        options = {"method": method, name: value}
        if method in ONLY_WITH_METHOD[name]:
            assert getattr(ContinualSettings(**options), name) == value
        else:
            with pytest.raises(ValueError, match=f"Expected no --{name} with {method}: it belongs to"):
                ContinualSettings(**options)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--num-tasks 1", "--num_tasks to be at least 2, but got 1"),
        ("--buffer-size 0", "--buffer_size to be at least 1, but got 0"),
        ("--first-epochs 0", "--first_epochs to be at least 1, but got 0"),
        ("--first-epochs 2 --warmup-epochs 5", "--warmup_epochs to be at most --first_epochs=2, but got 5.0"),
        ("--method joint --first-epochs 2", "no --first_epochs with joint: it belongs to co2l, supcon_replay, er"),
        ("--distill-weight 0 --past-temperature 0.1", "--distill_weight to be > 0 with --past_temperature, which"),
        ("--distill-weight 0 --distill-temperature 1", "--distill_weight to be > 0 with --distill_temperature, which"),
        ("--contrastive-weight 0 --anchors all", "--contrastive_weight to be > 0 with --anchors, which has no effect"),
        ("--contrastive-weight .inf", "--contrastive_weight to be finite, but got inf"),
        ("--past-temperature .inf", "--past_temperature to be finite, but got inf"),
        ("--distill-weight -1", "--distill_weight to be at least 0, but got -1"),
        ("--past-temperature 0", "--past_temperature to be > 0, but got 0"),
        ("--distill-temperature .nan", "--distill_temperature to be > 0, but got nan"),
        ("--distill-weight 0 --contrastive-weight 0", "to be > 0, but got 0 for both"),
        ("--num-tasks 2 --tasks [[0,1],[2]]", "no --tasks with --num_tasks"),
        ("--tasks [[0,1]]", "at least 2 tasks in --tasks"),
        ("--shuffle-classes --tasks [[0,1],[2]]", "no --tasks with --shuffle_classes"),
        ("--scenario domain --tasks [[0,1],[2]]", "no --tasks with --scenario domain"),
        ("--scenario domain --shuffle-classes", "no --shuffle_classes with --scenario domain"),
        ("--domain rotation", "--scenario domain with --domain, but got class"),
        ("--temperature 0", "--temperature to be > 0, but got 0"),  # of the engine
        ("--epochs 0", "--epochs to be at least 1, but got 0"),
        ("--warmup-epochs 11", "--warmup_epochs to be at most --epochs=10, but got 11"),
        ("--knn-every 3", "knn_every"),
        ("--metod er", "did you mean"),
    ],
)
def test_settings_that_are_refused(flags, reason, capsys):
    assert reason in refused(flags.split(), capsys)


def test_each_training_has_its_epochs_seed_and_loss():
    settings = ContinualSettings(seed=3, epochs=4, first_epochs=9, temperature=0.3, batch_size=32, head_dim=16)
    first, second = settings.of_task(1), settings.of_task(2)
    assert (first.epochs, second.epochs) == (9, 4)
    assert (first.seed, second.seed) == (3, 3 + SEED_OF_TASK)
    assert (first.method, first.temperature, first.batch_size, first.head_dim) == ("supcon_out", 0.3, 32, 16)
    weights = ContinualSettings(encoder_weights=Path("some"))
    assert [weights.of_task(number).encoder_weights for number in (1, 2)] == [Path("some"), None]
    pretrained = ContinualSettings(pretrained=True)
    assert [pretrained.of_task(number).pretrained for number in (1, 2)] == [True, False]
    assert ContinualSettings(method="er").of_task(1).method == "cross_entropy"
    assert isinstance(first, TrainSettings)
