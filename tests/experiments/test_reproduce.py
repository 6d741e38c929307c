"""`reproduce.py`: it trains what is missing, goes on after a kill, on several processes too, and leaves its records."""

import json
import signal
import time

import numpy as np
import pytest
from helpers.run_processes import Run
from PIL import Image

from pml_supcon.experiments import app as reproduce
from pml_supcon.experiments.experiment import TOP1

pytestmark = pytest.mark.slow

TINY = ["--max-train", "300", "--max-test", "60", "--batch-size", "30", "--encoder-args.channels", "[8, 8, 8, 8]"]
TINY += ["--head-dim", "16", "--warmup-epochs", "0", "--held-out", "0.5", "--clip-gradient-norm", "0.5"]


def reproduced(folder, *arguments, epochs=1, processes=1):
    """The records of experiments, run to their end."""
    command = [*arguments, "--runs", folder, *TINY, "--epochs", epochs]
    assert Run(command, main=reproduce.main, processes=processes).wait() == [0] * processes
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("results-*/*.json")}


def scores_of(record):
    return {name: training["scores"] for name, training in record["trainings"].items()}


def finished(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}


def test_what_is_finished_is_not_repeated_and_experiments_share_it(tmp_path):
    record = reproduced(tmp_path, "losses", "--seeds", 3, 4)["losses"]
    once = finished(tmp_path)
    assert len(once) == 2 * (5 + 2)  # five learning rates, then two seeds
    for name, training in record["trainings"].items():
        assert sorted(training["scores"]) == ["3", "4"]
        assert len(training["tried"]) == 5
        assert f"{training['learning_rate']:g}" in training["tried"], name
        for seed, scores in training["scores"].items():
            runs = [json.loads(path.read_text()) for path in once]
            assert any(
                (run["method"], run["seed"], run["scored"], run[TOP1]) == (name, int(seed), "test", scores[TOP1])
                for run in runs
            )
    lines = [line["values"] for line in record["lines"]]  # of supcon_out, supcon_in
    assert lines[1] == [scores[TOP1] for scores in record["trainings"]["supcon_in"]["scores"].values()]
    left = {path.name for folder in tmp_path.glob("results-*") for path in folder.iterdir()}
    assert left == {"losses.json", "losses.md", "losses.svg"}
    assert set(record["seconds"]) == {path.parent.name for path in once}

    found = reproduced(tmp_path, "losses", "joint", "--seeds", 3, 4)
    assert scores_of(found["losses"]) == scores_of(record)
    assert found["joint"]["trainings"]["supcon_out"] == record["trainings"]["supcon_out"]
    again = finished(tmp_path)
    assert {path: again[path] for path in once} == once
    assert len(again) == len(once) + 3 * (5 + 2)  # two kinds of joint, and cross_entropy
    assert set(found["losses"]["seconds"]) | set(found["joint"]["seconds"]) == {path.parent.name for path in again}


def test_a_kill_changes_nothing(tmp_path):
    options = ["losses", "--seeds", 0, "--learning-rate", 0.1, "--save-every", 2]
    whole = reproduced(tmp_path / "whole", *options, epochs=12)["losses"]
    ends = []
    for signal_sent in (signal.SIGKILL, signal.SIGTERM, None):
        before = checkpoints_in(tmp_path / "cut")
        run = Run([*options, "--runs", tmp_path / "cut", *TINY, "--epochs", 12], main=reproduce.main)
        deadline = time.time() + 300
        while signal_sent and run.alive and time.time() < deadline and checkpoints_in(tmp_path / "cut") <= before:
            time.sleep(0.01)  # until it has gone on
        if signal_sent:
            run.send(signal_sent)
        ends += run.wait()
    assert ends == [-signal.SIGKILL, 128 + signal.SIGTERM, 0]
    cut = json.loads(next((tmp_path / "cut").glob("results-*/losses.json")).read_text())
    for key in ("lines", "comparisons"):
        assert cut[key] == whole[key]
    assert not list((tmp_path / "cut").glob("*/checkpoints"))  # of finished runs


def checkpoints_in(folder):
    return {path.name for path in folder.glob("*/checkpoints/step-*")}


def test_two_processes_train_together(tmp_path):
    record = reproduced(tmp_path, "head", "--seeds", 0, "--learning-rate", 0.1, processes=2)["head"]
    assert record["origin"]["processes"] == ["2"]
    table = next(tmp_path.glob("results-*/head.md")).read_text()
    assert "| label, h |" in table
    assert "| rotation, g(h) |" in table
    assert all(0 <= value <= 1 for line in record["lines"] for value in line["values"])


def test_what_diverges_is_told_and_counts_as_chance(tmp_path):
    options = ("losses", "--seeds", 0, "--learning-rate", 1e25)
    record = reproduced(tmp_path, *options)["losses"]
    assert record["trainings"]["supcon_out"]["scores"]["0"][TOP1] == pytest.approx(0.1)
    assert "step" in record["trainings"]["supcon_out"]["diverged"]["0"]
    assert "its accuracy counts as chance" in next(tmp_path.glob("results-*/losses.md")).read_text()
    noted = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/diverged.json")}
    assert len(noted) == 2
    assert reproduced(tmp_path, *options)["losses"]["lines"] == record["lines"]
    assert {path: path.stat().st_mtime_ns for path in noted} == noted


@pytest.mark.parametrize(
    ("experiment", "expected"),
    [
        ("corruption", {"corruption/accuracy/0", "corruption/accuracy/5", "corruption/ece/3"}),
        ("mining", {"hard_mining/supcon_out/positives/gradient_hardness", "loss/milliseconds"}),
        ("optimizers", {"stage2/lars", "stage2/rmsprop", "stage2/sgd"}),
        ("transfer", {"transfer/digits?classes=5-9"}),
        ("label-noise", {TOP1}),
    ],
)
def test_experiments_have_their_figures(experiment, expected, tmp_path):
    record = reproduced(tmp_path, experiment, "--seeds", 0, "--learning-rate", 0.1)[experiment]
    first = next(iter(record["trainings"].values()))
    assert expected <= set(first["scores"]["0"])
    assert all(value is not None for line in record["lines"] for value in line["values"])
    assert {each["verdict"] for each in record["comparisons"]} <= {*("held", "not told apart", "reversed")}
    if experiment == "label-noise":
        wrong = [training["scores"]["0"]["train/wrong_labels"] for training in record["trainings"].values()]
        assert sorted(set(wrong)) == [0, 30, 60, 90]


def test_few_labels_on_two_processes(tmp_path):
    """Fewer images than a batch has, at the scale's own size."""
    command = ["few-labels", "--seeds", 0, "--learning-rate", 0.03, "--encoder-args.channels", "[8, 8, 8, 8]"]
    command += ["--epochs", 1, "--warmup-epochs", 0, "--runs", tmp_path]
    assert Run(command, main=reproduce.main, processes=2).wait() == [0, 0]
    record = json.loads(next(tmp_path.glob("results-*/few-labels.json")).read_text())
    images = [training["scores"]["0"]["train/images"] for training in record["trainings"].values()]
    assert images == [25, 63, 126, 251] * 2


def test_what_is_wrong_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["losses", "--runs", str(tmp_path), "--data", "imagefolder:/no/such/folder"])
    assert ended.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1] == "reproduce.py: error: Expected a folder of images, but there is no folder /no/such/folder"


def test_a_few_steps_at_the_scale_of_all_of_cifar10(tmp_path):
    """Everything but the size is the scale's: ResNet-18, bfloat16, the choice on held-out images, then all of them."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 12, 12, 3), dtype=np.uint8)
    for split, first, last in (("train", 0, 10), ("test", 10, 12)):
        for label in range(10):
            folder = tmp_path / "images" / split / str(label)
            folder.mkdir(parents=True)
            for number in range(first, last):
                Image.fromarray(pixels[label, number]).save(folder / f"{number}.png")
    few = ["--batch-size", 30, "--epochs", 1, "--warmup-epochs", 0, "--data"]
    few += [f"imagefolder:{tmp_path / 'images'}"]
    command = ["losses", "--scale", "cifar10", "--seeds", 0, 1, *few, "--runs", tmp_path / "runs"]
    assert Run(command, main=reproduce.main).wait() == [0]
    record = json.loads(next((tmp_path / "runs").glob("results-*/losses.json")).read_text())
    assert record["settings"]["encoder"] == "resnet18"
    assert record["settings"]["mixed_precision"] == "bf16"
    assert [len(training["tried"]) for training in record["trainings"].values()] == [4, 4]
    metrics = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/metrics.json")]
    assert {each["precision"] for each in metrics} == {"bf16"}
