"""`reproduce.py` from its command to its records: it trains missing runs only, and resumes after kills."""

import json
import signal
import time

import numpy as np
import pytest
from helpers.run_processes import Run
from PIL import Image

from pml_supcon.experiments import app as reproduce
from pml_supcon.experiments.experiment import TOP1

TINY = ["--max-train", "300", "--max-test", "60", "--batch-size", "30", "--encoder-args.channels", "[8, 8, 8, 8]"]
TINY += ["--head-dim", "16", "--warmup-epochs", "0", "--held-out", "0.5", "--clip-gradient-norm", "0.5"]
ONE_RATE = ["--seeds", 0, "--learning-rate", 0.1]  # no learning rate is chosen


def reproduced(folder, *arguments, epochs=1, processes=1):
    """Run experiments to their end in processes of their own and return their records by name."""
    command = [*arguments, "--runs", folder, *TINY, "--epochs", epochs]
    assert Run(command, main=reproduce.main, processes=processes).wait() == [0] * processes
    return records_in(folder)


def records_in(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("results-*/*.json")}


def no_plot(record, path):
    raise RuntimeError("no font")


def finished(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}


def test_an_experiment_writes_its_record_and_repeats_no_run(tmp_path, monkeypatch, capsys):
    command = ["losses", *ONE_RATE, "--runs", tmp_path, *TINY, "--epochs", 1]
    reproduce.main([*map(str, command)])
    once, record = finished(tmp_path), records_in(tmp_path)["losses"]
    assert len(once) == 2
    scores = {json.loads(path.read_text())["method"]: json.loads(path.read_text())[TOP1] for path in once}
    assert [line["values"] for line in record["lines"]] == [[scores["supcon_out"]], [scores["supcon_in"]]]
    assert "| `supcon_in` |" in next(tmp_path.glob("results-*/losses.md")).read_text()
    monkeypatch.setattr(reproduce, "plot", no_plot)
    reproduce.main([*map(str, command)])
    assert finished(tmp_path) == once
    assert "losses.svg was not drawn: RuntimeError('no font')" in capsys.readouterr().err


def test_an_error_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["losses", "--runs", str(tmp_path), "--data", "imagefolder:/no/such/folder"])
    assert ended.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1] == "reproduce.py: error: Expected a folder of images, but there is no folder /no/such/folder"


@pytest.mark.slow
def test_experiments_share_runs_with_their_seeds_and_learning_rates(tmp_path):
    record = reproduced(tmp_path, "losses", "--seeds", 3, 4)["losses"]
    once = finished(tmp_path)
    assert len(once) == 2 * (5 + 2)  # five learning rates, then two seeds
    runs = [json.loads(path.read_text()) for path in once]
    tested = {(run["method"], str(run["seed"])): run[TOP1] for run in runs if run["scored"] == "test"}
    assert len(tested) == 4
    for name, training in record["trainings"].items():
        assert len(training["tried"]) == 5
        assert f"{training['learning_rate']:g}" in training["tried"], name
        assert {(name, seed): each[TOP1] for seed, each in training["scores"].items()}.items() <= tested.items()
    left = {path.name for folder in tmp_path.glob("results-*") for path in folder.iterdir()}
    assert left == {"losses.json", "losses.md", "losses.svg"}
    assert set(record["seconds"]) == {path.parent.name for path in once}

    found = reproduced(tmp_path, "losses", "joint", "--seeds", 3, 4)
    assert found["losses"]["trainings"] == record["trainings"]
    assert found["joint"]["trainings"]["supcon_out"] == record["trainings"]["supcon_out"]
    again = finished(tmp_path)
    assert once.items() <= again.items()
    assert len(again) == len(once) + 3 * (5 + 2)  # two kinds of joint, and cross_entropy
    assert set(found["losses"]["seconds"]) | set(found["joint"]["seconds"]) == {path.parent.name for path in again}


@pytest.mark.slow
def test_kills_do_not_change_the_scores(tmp_path):
    options, cut = ["losses", *ONE_RATE, "--save-every", 2], tmp_path / "cut"

    def checkpoints():
        return {path.name for path in cut.glob("*/checkpoints/step-*")}

    whole = reproduced(tmp_path / "whole", *options, epochs=12)["losses"]
    ends = []
    for signal_sent in (signal.SIGKILL, signal.SIGTERM, None):
        before, deadline = checkpoints(), time.time() + 300
        run = Run([*options, "--runs", cut, *TINY, "--epochs", 12], main=reproduce.main)
        while signal_sent and run.alive and time.time() < deadline and checkpoints() <= before:
            time.sleep(0.01)  # until it has written a new checkpoint
        if signal_sent:
            run.send(signal_sent)
        ends += run.wait()
    assert ends == [-signal.SIGKILL, 128 + signal.SIGTERM, 0]
    for key in ("lines", "comparisons"):
        assert records_in(cut)["losses"][key] == whole[key]
    assert not list(cut.glob("*/checkpoints"))  # of finished runs


@pytest.mark.slow
def test_two_processes_train_together(tmp_path):
    record = reproduced(tmp_path, "head", *ONE_RATE, processes=2)["head"]
    assert record["origin"]["processes"] == ["2"]
    table = next(tmp_path.glob("results-*/head.md")).read_text()
    assert "| label, h |" in table
    assert "| rotation, g(h) |" in table
    assert all(0 <= value <= 1 for line in record["lines"] for value in line["values"])


@pytest.mark.slow
def test_a_diverged_training_is_reported_and_counts_as_chance(tmp_path):
    options = ("losses", "--seeds", 0, "--learning-rate", 1e25)
    record = reproduced(tmp_path, *options)["losses"]
    assert record["trainings"]["supcon_out"]["scores"]["0"][TOP1] == pytest.approx(0.1)
    assert "step" in record["trainings"]["supcon_out"]["diverged"]["0"]
    assert "its accuracy counts as chance" in next(tmp_path.glob("results-*/losses.md")).read_text()
    noted = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/diverged.json")}
    assert len(noted) == 2
    assert reproduced(tmp_path, *options)["losses"]["lines"] == record["lines"]
    assert {path: path.stat().st_mtime_ns for path in noted} == noted


@pytest.mark.slow
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
def test_experiments_have_all_their_scores(experiment, expected, tmp_path):
    record = reproduced(tmp_path, experiment, *ONE_RATE)[experiment]
    first = next(iter(record["trainings"].values()))
    assert expected <= set(first["scores"]["0"])
    assert all(value is not None for line in record["lines"] for value in line["values"])
    assert {each["verdict"] for each in record["comparisons"]} <= {"held", "not told apart", "reversed"}
    if experiment == "label-noise":
        wrong = {training["scores"]["0"]["train/wrong_labels"] for training in record["trainings"].values()}
        assert wrong == {0, 30, 60, 90}


@pytest.mark.slow
def test_few_labels_on_two_processes(tmp_path):
    """At the scale's own size a batch may have more images than the training set."""
    command = ["few-labels", "--seeds", 0, "--learning-rate", 0.03, "--encoder-args.channels", "[8, 8, 8, 8]"]
    command += ["--epochs", 1, "--warmup-epochs", 0, "--runs", tmp_path]
    assert Run(command, main=reproduce.main, processes=2).wait() == [0, 0]
    trainings = records_in(tmp_path)["few-labels"]["trainings"].values()
    assert [training["scores"]["0"]["train/images"] for training in trainings] == [25, 63, 126, 251] * 2


@pytest.mark.slow
def test_a_few_steps_at_the_scale_of_all_of_cifar10(tmp_path):
    """Only the data and the epochs differ from the scale: ResNet-18, bfloat16, held-out images, then all of them."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 12, 12, 3), dtype=np.uint8)
    for label, number in np.ndindex(10, 12):
        folder = tmp_path / "images" / ("train" if number < 10 else "test") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[label, number]).save(folder / f"{number}.png")
    command = ["losses", "--scale", "cifar10", "--seeds", 0, 1, "--runs", tmp_path / "runs", "--batch-size", 30]
    command += ["--epochs", 1, "--warmup-epochs", 0, "--data", f"imagefolder:{tmp_path / 'images'}"]
    assert Run(command, main=reproduce.main).wait() == [0]
    record = records_in(tmp_path / "runs")["losses"]
    assert (record["settings"]["encoder"], record["settings"]["mixed_precision"]) == ("resnet18", "bf16")
    assert [len(training["tried"]) for training in record["trainings"].values()] == [4, 4]
    metrics = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/metrics.json")]
    assert {each["precision"] for each in metrics} == {"bf16"}
