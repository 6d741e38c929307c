"""Whole continual runs as a user starts them: files, matrices, scenarios, processes and invalid input."""

import json
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.image_folders import random_images
from helpers.run_processes import Run, untimed

from pml_supcon import cli
from pml_supcon.evaluation.continual.app import main as evaluation_main
from pml_supcon.evaluation.loading import load_trained_encoder
from pml_supcon.metrics import average_accuracy, forgetting
from pml_supcon.training.continual import train
from pml_supcon.training.continual.app import main
from pml_supcon.training.continual.settings import parse_settings
from pml_supcon.training.run import RunFolder

TINY = ["--data", "digits?classes=0-5", "--num-tasks", "3", "--max-train", "120", "--max-test", "60"]
TINY += ["--batch-size", "20", "--epochs", "2", "--warmup-epochs", "0", "--encoder-args.channels", "[8, 8, 8, 8]"]
FILES = {"config.yaml", "metrics.json", "digests.json", "history.jsonl", "encoder", "checkpoints", "continual.json"}


def run(folder, *arguments):
    main([*TINY, *map(str, arguments), "--output", str(folder)])
    return read(folder)


def read(folder):
    return json.loads((folder / "continual.json").read_text()), json.loads((folder / "metrics.json").read_text())


def known(matrix):
    """Return where a matrix has accuracies."""
    return [[value is not None for value in row] for row in matrix]


@pytest.mark.parametrize("method", ["co2l", "supcon_replay", "er", "finetune", "joint"])
def test_a_run_leaves_its_files_and_matrices(method, tmp_path, capsys):
    contrastive, buffer = method in ("co2l", "supcon_replay"), method not in ("finetune", "joint")
    options = (["--buffer-size", "20"] if buffer else []) + (["--head-dim", "16"] if contrastive else [])
    record, metrics = run(tmp_path / "run", "--method", method, *options)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= FILES | (
        {"head.safetensors"} if contrastive else set()
    )
    assert record["method"] == metrics["method"] == record["settings"]["method"] == method
    assert record["tasks"] == [["0", "1"], ["2", "3"], ["4", "5"]]
    assert metrics["buffer_size"] == (20 if buffer else 0)
    for kind in ("class_il", "task_il"):
        matrix = np.array(record[kind], dtype=float)
        rows = [[False] * 3, [False] * 3, [True] * 3] if method == "joint" else np.tri(3, dtype=bool).tolist()
        assert known(record[kind]) == rows
        assert np.nanmin(matrix) >= 0
        assert np.nanmax(matrix) <= 1
        assert record["average_accuracy"][kind] == metrics[f"average_accuracy/{kind}"] == average_accuracy(matrix)
        if method == "joint":
            assert record["forgetting"][kind] is None
        else:
            assert record["forgetting"][kind] == metrics[f"forgetting/{kind}"] == forgetting(matrix)
    assert record["class_il"][0][0] == record["task_il"][0][0] or method == "joint"  # one task: the same classes
    assert not any(isinstance(value, dict | list) for value in metrics.values())
    said = capsys.readouterr().out
    assert "tasks: 0, 1 | 2, 3 | 4, 5" in said
    shown = next(line.split() for line in said.splitlines() if line.startswith("average_accuracy/class_il"))
    assert shown[1] == f"{record['average_accuracy']['class_il']:.4f}"
    assert "task_il" not in said  # the scenario's accuracy
    assert load_trained_encoder(str(tmp_path / "run")).model is not None


def test_the_written_config_repeats_the_run_and_a_seed_changes_it(tmp_path):
    options = ["--method", "supcon_replay", "--buffer-size", "12", "--shuffle-classes"]
    one, _ = run(tmp_path / "one", *options)
    main(["--config", str(tmp_path / "one" / "config.yaml"), "--output", str(tmp_path / "two")])
    assert read(tmp_path / "two")[0] == one
    other, _ = run(tmp_path / "other", *options, "--seed", "1")
    assert other["tasks"] != one["tasks"]


def test_domains_have_the_same_classes(tmp_path):
    options = ["--scenario", "domain", "--domain", "rotation", "--num-tasks", "2", "--buffer-size", "24"]
    for method in ("co2l", "er"):
        record, _ = run(tmp_path / method, *options, "--method", method)
        assert record["tasks"] == [list("012345")] * 2
        assert record["class_il"] == record["task_il"]


def test_batches_and_buffer_have_the_samples_of_their_tasks(tmp_path, monkeypatch):
    seen, build = [], train.build_task_context

    def build_and_note(work, number):
        context = build(work, number)
        held = {} if work.progress.buffer is None else work.progress.buffer.counts()
        seen.append((context.images.labels.bincount(minlength=6).tolist(), held))
        return context

    monkeypatch.setattr(train, "build_task_context", build_and_note)
    run(tmp_path / "run", "--buffer-size", "13")
    counts = [sum(labels) for labels, _ in seen]
    for number, (labels, held) in enumerate(seen):
        new = {2 * number, 2 * number + 1}
        assert sum(held.values()) == (13 if number else 0)
        assert all(labels[label] == count for label, count in held.items())
        assert {label for label in range(6) if labels[label]} == new | set(held)
        assert all(labels[label] == 20 for label in new)
    assert counts == [40, 53, 53]
    seen.clear()
    run(tmp_path / "alone", "--buffer-size", "13", "--replay=false")  # the buffer is the classifier's
    assert [sum(labels) for labels, _ in seen] == [40, 40, 40]
    assert [sum(held.values()) for _, held in seen] == [0, 13, 13]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--num-tasks 7", "--num_tasks to be at most the 6 classes, but got 7"),
        ("--tasks [[0,1],[2,1]] --num-tasks 5", "class '1' is in task 1 and in task 2"),
        ("--tasks [[0,1],[7,2]] --num-tasks 5", "classes among 0, 1, 2, 3, 4, 5 in --tasks, but got 7"),
        ("--buffer-size 5", "--buffer_size to be at least 6, a sample of each class of the stream, but got 5"),
        ("--scenario domain --buffer-size 17", "--buffer_size to be at least 18"),
        ("--encoder resnet1O", "resnet1O"),
        (
            "--batch-size 41",
            "--batch_size to be at most the 40 images of training 1, from its task and the buffer, but",
        ),
        ("--tasks [[0,1,2,3],[4]] --num-tasks 5 --batch-size 27 --buffer-size 6", "the 26 images of training 2"),
    ],
)
def test_invalid_streams_are_one_line_before_training(flags, reason, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*TINY, *flags.split(), "--output", str(tmp_path / "run")])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("continual.py: error: ")
    assert reason in line
    assert not (tmp_path / "run").exists()


def test_held_out_images_are_scored_in_place_of_the_test_images(tmp_path):
    pools = []
    for share in ("0", "0.25"):
        settings = parse_settings([*TINY, "--held-out", share, "--output", str(tmp_path / "run")])
        loaded = train.load_run(train.open_run(settings, Accelerator(cpu=True)), Accelerator(cpu=True))
        pools.append(loaded.work.stream.data)
        loaded.work.run.release()
        shutil.rmtree(tmp_path / "run")
    whole, held = ({image.numpy().tobytes() for image in pools[0].train.images}, pools[1])
    assert (len(held.train), len(held.test)) == (90, 30)
    assert held.test.labels.bincount().tolist() == [5] * 6
    trained, scored = ({image.numpy().tobytes() for image in part.images} for part in (held.train, held.test))
    assert trained | scored == whole
    assert not trained & scored


def test_the_report_is_written_before_the_metrics(tmp_path, monkeypatch):
    left = []
    write = RunFolder.write_metrics

    def write_metrics(folder, metrics):
        left.append({path.name for path in folder.path.iterdir()})
        write(folder, metrics)

    monkeypatch.setattr(RunFolder, "write_metrics", write_metrics)
    evaluation_main([*TINY, "--method", "finetune", "--epochs", "1", "--output", str(tmp_path / "run")])
    assert {"report.html", "continual.json"} <= left[0]
    assert "finetune: 3 tasks" in (tmp_path / "run" / "report.html").read_text()


def test_a_report_that_fails_is_a_note(tmp_path, capsys):
    def report(folder):
        raise OSError("no template")

    main([*TINY, "--method", "finetune", "--epochs", "1", "--output", str(tmp_path / "run")], report=report)
    assert (tmp_path / "run" / "metrics.json").exists()
    assert "the report was not written: OSError('no template')" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "models"), [([], 2), (["--distill-weight", "0"], 1), (["--method", "er"], 1)])
def test_the_checkpoints_of_distilled_runs_have_room_for_the_past_model(options, models, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(train, "bytes_of", lambda stage: 0)
    monkeypatch.setattr(RunFolder, "check_space", lambda folder, size: asked.append(size))
    settings = parse_settings([*TINY, *options, "--output", str(tmp_path / "run")])
    loaded = train.load_run(train.open_run(settings, Accelerator(cpu=True)), Accelerator(cpu=True))
    weights = sum(tensor.nbytes for tensor in loaded.stage.model.state_dict().values())
    assert asked == [(models - 1) * weights]
    loaded.work.run.release()


def test_a_finished_run_is_printed_again(tmp_path, capsys):
    run(tmp_path / "run", "--method", "finetune", "--epochs", "1")
    capsys.readouterr()
    main(["--output", str(tmp_path / "run"), "--resume"])
    assert "average_accuracy/class_il" in capsys.readouterr().out


CONFIG = cli.configurations()["continual_cifar10"]


def test_the_paper_s_configuration_has_its_values():
    settings = parse_settings(["--config", str(CONFIG)])
    first, second = settings.of_task(1), settings.of_task(2)
    assert (first.epochs, second.epochs, first.learning_rate, first.temperature) == (500, 100, 0.5, 0.5)
    assert first.clip_gradient_norm is None
    assert (settings.distill_temperature, settings.past_temperature, settings.batch_size) == (0.2, 0.01, 512)
    assert (settings.method, settings.scenario, settings.num_tasks, settings.buffer_size) == ("co2l", "class", 5, 200)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["co2l", "er"])
def test_the_paper_s_configuration_trains_on_colour_images(method, tmp_path):
    images = random_images(tmp_path / "images", 32, 10)
    flags = ["--data", f"imagefolder:{images}", "--epochs", "1", "--first-epochs", "1", "--batch-size", "4"]
    flags += ["--warmup-epochs", "0", "--encoder", "resnet10t", "--encoder-args.channels", "[8, 8, 8, 8]"]
    main(["--config", str(CONFIG), *flags, "--method", method, "--output", str(tmp_path / "run")])
    assert known(read(tmp_path / "run")[0]["class_il"]) == np.tri(5, dtype=bool).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["co2l", "er"])
def test_two_processes_train_and_score(method, tmp_path):
    arguments = [*TINY, "--buffer-size", "20", "--method", method, "--output", tmp_path / "run"]
    assert Run(arguments, processes=2, main=main).wait() == [0, 0]
    record, metrics = read(tmp_path / "run")
    assert metrics["processes"] == 2
    assert known(record["class_il"]) == np.tri(3, dtype=bool).tolist()
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == metrics["train/steps"]
    assert all(torch.tensor(losses).isfinite())
    assert untimed(metrics)["tasks"] == 3
