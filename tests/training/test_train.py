"""Whole runs as a user starts them: files, scores, data sources, processes and invalid input."""

import json
import re

import pytest
import timm
import torch
from helpers.run_processes import Run
from PIL import Image

import pml_supcon.models  # noqa: F401 - registers the small stem with timm
from pml_supcon.data.load import load_data
from pml_supcon.metrics import choose_inverse_l2, linear_probe_metrics
from pml_supcon.training.app import main
from pml_supcon.training.pictures import draw_embedding_map
from pml_supcon.training.scoring import BATCH
from pml_supcon.views import evaluation_transform

FILES = {"config.yaml", "metrics.json", "digests.json", "history.jsonl", "encoder", "checkpoints"}
FILES |= {"head.safetensors", "loss_curve.png", "embedding_map.png", "gallery.png"}
KEYS = {"retrieval/precision_at_1", "retrieval/r_precision", "retrieval/mean_average_precision_at_r"}
KEYS |= {"linear_probe/top1", "train/final_loss", "seconds/total", "seed"}
QUICK = ["--max-train", "300", "--max-test", "100", "--batch-size", "100", "--epochs", "2"]


def run(folder, *arguments):
    main([*map(str, arguments), "--output", str(folder)])
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "quick"
    return folder, run(folder, *QUICK)


@pytest.mark.slow
def test_default_run_reaches_its_documented_scores(tmp_path):
    metrics = run(tmp_path / "run")
    assert metrics["linear_probe/top1"] >= 0.98
    assert metrics["retrieval/precision_at_1"] >= 0.98


def test_run_leaves_its_files_and_a_flat_record(quick_run):
    folder, metrics = quick_run
    assert {path.name for path in folder.iterdir()} == FILES
    assert metrics.keys() >= KEYS
    assert not any(isinstance(value, dict | list) for value in metrics.values())
    for picture in folder.glob("*.png"):
        assert min(Image.open(picture).size) > 300


def test_saved_encoder_is_the_trained_one(quick_run):
    folder, metrics = quick_run
    encoder = timm.create_model(f"local-dir:{folder / 'encoder'}", pretrained=True).eval()
    data = load_data("digits", max_train=300, max_test=100)
    config = timm.data.resolve_model_data_config(encoder)
    assert config["mean"] == pytest.approx(data.mean)
    assert config["std"] == pytest.approx(data.std)
    transform = evaluation_transform(data.image_size, mean=data.mean, std=data.std)
    with torch.no_grad():
        train, test = (
            torch.cat([encoder(transform(part)) for part in images.split(BATCH)])
            for images in (data.train.images, data.test.images)
        )
    chosen = choose_inverse_l2(train, data.train_labels).inverse_l2
    assert chosen == metrics["linear_probe/inverse_l2"]
    probe = linear_probe_metrics(train, data.train_labels, test, data.test_labels, inverse_l2=chosen)
    assert probe["top1"] == pytest.approx(metrics["linear_probe/top1"], abs=0.011)


def test_written_config_repeats_the_run_and_a_seed_changes_it(quick_run, tmp_path):
    folder, metrics = quick_run
    config = ["--config", folder / "config.yaml", "--pictures", "false"]
    again, other = (run(tmp_path / str(seed), *config, "--seed", seed) for seed in (0, 1))
    assert again["train/final_loss"] == pytest.approx(metrics["train/final_loss"], rel=1e-4)
    assert other["train/final_loss"] != pytest.approx(metrics["train/final_loss"], rel=1e-4)
    assert again["train/images"] == 300


def write_images(folder, classes, number=8):
    """Write noise of several sizes, brighter from class to class."""
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(number):
            pixels = torch.randint(0, 60, (20 + index, 16, 3), dtype=torch.uint8) + 60 * place
            Image.fromarray(pixels.numpy()).save(folder / name / f"{index}.png")


def test_folder_of_images(tmp_path):
    write_images(tmp_path / "images", ["ape", "bee", "cat"], 20)
    options = ["--image-size", 16, "--batch-size", 16, "--epochs", 2, "--workers", 1]
    metrics = run(tmp_path / "run", "--data", f"imagefolder:{tmp_path / 'images'}", *options)
    assert metrics["linear_probe/top1"] > 0.8


def test_two_processes_leave_the_same_files(quick_run, tmp_path):
    assert Run([*QUICK, "--output", tmp_path / "run"], processes=2).wait() == [0, 0]
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics.keys() == quick_run[1].keys()
    assert metrics["processes"] == 2
    assert metrics["train/final_loss"] == pytest.approx(quick_run[1]["train/final_loss"], rel=0.1)


def test_diverging_run_names_step_and_checkpoint(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "run", *QUICK, "--learning-rate", 1e7, "--epochs", 5, "--warmup-epochs", 0)
    assert ended.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"the loss became (nan|inf) at step \d+", message)
    saved = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert f"last good checkpoint: {saved[-1] if saved else 'none'}" in message


def test_features_of_a_broken_last_step_are_an_error(tmp_path, capsys):
    arguments = ["--max-train", 300, "--batch-size", 300, "--epochs", 1, "--learning-rate", 1e20, "--warmup-epochs", 0]
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "run", *arguments)
    assert ended.value.code == 1
    assert "features are not finite after the last step" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run" / "encoder").exists()


@pytest.mark.parametrize(("number", "width"), [(1, 5), (2, 1), (3, 2), (4, 3)])
def test_map_of_few_points(number, width, tmp_path):
    draw_embedding_map(torch.randn(number, width), torch.zeros(number).long(), ["all"], tmp_path / "map.png", 0)
    assert (tmp_path / "map.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "supcon_ot"], "did you mean 'supcon_out'"),
        (["--metod", "simclr"], "did you mean 'method'"),
        (["--data", "digit"], "did you mean 'digits'"),
        (["--data", "torchvision:CIFAR1"], "CIFAR10"),
        (["--data", "imagefolder:{tmp}/corrupt"], "broken.png"),
        (["--max-per-class", "3"], "at most 30"),
        (["--samples-per-class", "3"], "multiple of samples_per_class"),
        (["--samples-per-class", "200", "--batch-size", "200"], "samples_per_class=200"),
        (["--epochs", "none"], "epochs"),
        (["--encoder-args.chanels", "3"], "chanels"),
        (["--config", "{tmp}/bad.yaml"], "did you mean 'epochs'"),
        (["--output", "{tmp}/taken"], "already holds a run"),
    ],
)
def test_invalid_input_is_one_line_and_leaves_nothing(arguments, message, tmp_path, capsys):
    write_images(tmp_path / "corrupt", ["ape", "bee"])
    (tmp_path / "corrupt" / "bee" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "bad.yaml").write_text("epoch: 3\n")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.yaml").write_text("")
    output = [] if "--output" in arguments else ["--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments] + output)
    assert ended.value.code in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    left = [path.name for path in (tmp_path / "run").rglob("*")]
    assert left == (["broken_images.txt"] if message == "broken.png" else [])


def test_new_test_classes_are_retrieved_among_each_other(tmp_path):
    write_images(tmp_path / "images" / "train", ["ape", "bee", "cat"])
    write_images(tmp_path / "images" / "test", ["dog", "eel", "fox"])
    options = ["--image-size", 16, "--batch-size", 8, "--epochs", 1]
    metrics = run(tmp_path / "run", "--data", f"imagefolder:{tmp_path / 'images'}", *options)
    assert metrics["retrieval/lone_queries"] == 0
    assert metrics["retrieval/precision_at_1"] > 1 / 3  # brighter from class to class
    assert "linear_probe/top1" not in metrics
    assert Image.open(tmp_path / "run" / "gallery.png").size


def test_some_new_test_classes_are_an_error(tmp_path, capsys):
    write_images(tmp_path / "images" / "train", ["ape", "bee", "cat"])
    write_images(tmp_path / "images" / "test", ["ape", "bee", "cats"])
    with pytest.raises(SystemExit):
        run(tmp_path / "run", "--data", f"imagefolder:{tmp_path / 'images'}")
    assert "to be a training class (or none of them), but cats are not" in capsys.readouterr().err


def test_held_out_images_replace_the_test_split(tmp_path):
    """Scores of held-out images do not depend on the test split."""
    options = [*QUICK, "--held-out", "0.3", "--pictures", "false"]
    scores = []
    for scored, most in (("held_out", 40), ("held_out", 100), ("test", 100)):
        metrics = run(tmp_path / f"{scored}{most}", *options, "--scored", scored, "--max-test", most)
        assert metrics["scored"] == scored
        scores.append({name: metrics[name] for name in metrics if name.startswith(("linear_probe/", "retrieval/"))})
    assert scores[0] == scores[1] != scores[2]
    assert not list((tmp_path / "test100").glob("*.png"))


@pytest.mark.parametrize("layout", ["Train Test", "training testing", "train validation", "classes", "train val test"])
def test_the_first_lines_say_what_was_read(layout, tmp_path, capsys):
    """Five layouts of folders: classes with counts, parts, and what was left out."""
    parts = layout.split() if layout != "classes" else ["."]
    for part in parts:
        for value, name in ((30, "cat"), (200, "dog")):
            (tmp_path / "images" / part / name).mkdir(parents=True, exist_ok=True)
            for index in range(10):
                Image.new("L", (8, 8), value + index).save(tmp_path / f"images/{part}/{name}/{index}.png")
    (tmp_path / "images" / parts[0] / "cat/list.txt").write_text("")
    flags = ["--data", f"imagefolder:{tmp_path}/images", "--output", str(tmp_path / "run"), "--epochs", "1"]
    flags += ["--batch-size", "10", "--warmup-epochs", "0", "--head-dim", "8"]
    main([*flags, "--encoder-args.channels", "[8, 8, 8, 8]", "--pictures", "false"])
    lines = capsys.readouterr().out.splitlines()[:3]
    train, test = (14, 6) if layout == "classes" else (20, 20)
    assert lines[0] == f"data imagefolder:{tmp_path}/images: 2 classes (cat {train // 2}, dog {train // 2})"
    left_out = [".txt files (1)"]
    if layout == "classes":
        assert lines[1] == f"train: 14 images of {tmp_path}/images; test: 6 images, 30 % of each class"
    else:
        scored = "test" if "val" in parts else parts[1]
        assert lines[1] == f"train: 20 images of {parts[0]}/; test: {test} images of {scored}/"
        left_out = ["val/", *left_out] if "val" in parts else left_out
    assert lines[2] == f"left out: {', '.join(left_out)}"
