"""The recipe as a user runs it: files, figures, methods, data sources, processes and bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image

import pml_supcon.models  # noqa: F401 - registers the small stem with timm
from pml_supcon.data.load import load_data
from pml_supcon.metrics import choose_inverse_l2, linear_probe_metrics
from pml_supcon.training.app import main
from pml_supcon.training.pictures import draw_embedding_map
from pml_supcon.views import evaluation_transform

REPOSITORY = Path(__file__).parent.parent.parent
CIFAR10 = REPOSITORY.parent / "shared" / "data" / "cifar10"
FILES = {"config.yaml", "metrics.json", "history.jsonl", "encoder", "checkpoints"}
FILES |= {"head.safetensors", "loss_curve.png", "embedding_map.png", "gallery.png"}
KEYS = {
    "retrieval/precision_at_1",
    "retrieval/r_precision",
    "retrieval/mean_average_precision_at_r",
    "linear_probe/top1",
    "train/final_loss",
    "seconds/total",
    "seed",
}
QUICK = ["--max-train", "300", "--max-test", "100", "--batch-size", "100", "--epochs", "2"]


def run(folder, *arguments):
    main([*map(str, arguments), "--output", str(folder)])
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "quick"
    return folder, run(folder, *QUICK)


@pytest.mark.slow
def test_default_run_reaches_the_promised_scores(tmp_path):
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
        train, test = encoder(transform(data.train.images)), encoder(transform(data.test.images))
    chosen = choose_inverse_l2(train, data.train_labels).inverse_l2
    assert chosen == metrics["linear_probe/inverse_l2"]
    probe = linear_probe_metrics(train, data.train_labels, test, data.test_labels, inverse_l2=chosen)
    assert probe["top1"] == pytest.approx(metrics["linear_probe/top1"], abs=0.011)


def test_written_config_repeats_the_run(quick_run, tmp_path):
    folder, metrics = quick_run
    again = run(tmp_path / "again", "--config", folder / "config.yaml")
    assert again["train/final_loss"] == pytest.approx(metrics["train/final_loss"], rel=1e-4)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["max_train"] == 300
    assert config["encoder"] == "resnet10t"


def test_seed_changes_the_run(quick_run, tmp_path):
    other = run(tmp_path / "other", *QUICK, "--seed", 1)
    assert other["train/final_loss"] != quick_run[1]["train/final_loss"]


@pytest.mark.parametrize("method", ["supcon_in", "simclr", "cross_entropy"])
def test_every_method_lowers_its_loss(method, tmp_path):
    quick = [*QUICK[:4], "--batch-size", "100", "--learning-rate", "0.05"]
    short = run(tmp_path / "short", *quick, "--method", method, "--epochs", 1)
    longer = run(tmp_path / "longer", *quick, "--method", method, "--epochs", 6)
    assert longer["train/final_loss"] < short["train/final_loss"]
    assert longer["method"] == method


def test_options_reach_the_loss_and_the_sampler(quick_run, tmp_path):
    options = ["--denominator", "one_positive", "--positives-cap", 2, "--contrast-mode", "one", "--views", 2]
    capped = run(tmp_path / "capped", *QUICK, *options, "--samples-per-class", 5, "--batch-size", 50)
    assert capped["train/steps"] == 2 * 6  # 300 images in batches of 50
    assert capped["train/final_loss"] != quick_run[1]["train/final_loss"]


@pytest.mark.skipif(not CIFAR10.exists(), reason="needs CIFAR-10 beside the checkout, in ../shared/data/cifar10")
def test_parquet_of_natural_images(tmp_path):
    metrics = run(tmp_path / "cifar", "--data", f"hf:{CIFAR10}", "--max-train", 2000, "--max-test", 500, "--epochs", 1)
    assert metrics["train/steps"] == 8
    assert metrics["linear_probe/top1"] > 0.2  # chance is 0.1


def test_folder_of_images(tmp_path):
    torch.manual_seed(0)
    for name, colour in {"reds": 0, "greens": 1, "blues": 2}.items():
        for index in range(20):
            pixels = torch.randint(0, 90, (40 + index, 36, 3), dtype=torch.uint8)
            pixels[..., colour] += 150
            path = tmp_path / "images" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(path)
    options = ["--image-size", 32, "--batch-size", 16, "--epochs", 2, "--workers", 1]
    metrics = run(tmp_path / "run", "--data", f"imagefolder:{tmp_path / 'images'}", *options)
    assert metrics["linear_probe/top1"] > 0.8


@pytest.mark.slow
def test_two_processes_leave_the_same_files(quick_run, tmp_path):
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(REPOSITORY / "recipes" / "train.py"), *QUICK, "--output", str(tmp_path / "run")]
    subprocess.run([*launch, *script], env=environment, check=True, timeout=300, capture_output=True)
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
    assert "the loss became" in message
    assert "at step" in message
    saved = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert f"last good checkpoint: {saved[-1] if saved else 'none'}" in message


def test_a_run_that_breaks_in_its_last_step_says_so(tmp_path, capsys):
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


def fill(folder, **classes):
    for name, number in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(number):
            Image.new("L", (8, 8), index).save(folder / name / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "supcon_ot"], "did you mean 'supcon_out'"),
        (["--metod", "simclr"], "did you mean 'method'"),
        (["--encoder", "resnt18"], "resnet18"),
        (["--data", "digit"], "did you mean 'digits'"),
        (["--data", "torchvision:CIFAR1"], "CIFAR10"),
        (["--data", "imagefolder:{tmp}/missing"], "missing"),
        (["--data", "imagefolder:{tmp}/empty"], "empty"),
        (["--data", "imagefolder:{tmp}/hollow"], "cats"),
        (["--data", "imagefolder:{tmp}/corrupt"], "broken.png"),
        (["--optimizer", "sdg"], "did you mean sgd"),
        (["--temperature", "0"], "temperature to be > 0, but got 0"),
        (["--positives-cap", "3"], "--positives_cap to be a multiple >= 0 of the number of views, 2, but got 3"),
        (["--max-per-class", "3"], "at most 30"),
        (["--samples-per-class", "3"], "multiple of samples_per_class"),
        (["--epochs", "none"], "epochs"),
        (["--views", "0"], "--views to be at least 1 for supcon_out, but got 0"),
        (["--method", "simclr", "--views", "1"], "--views to be at least 2 for simclr, but got 1"),
        (["--batch-size", "1"], "--batch_size to be at least 2"),
        (["--weight-decay", "-1"], "--weight_decay to be at least 0"),
        (["--seed", "-1"], "--seed to be at least 0"),
        (["--warmup-epochs", "99"], "--warmup_epochs to be at most --epochs"),
        (["--method", "cross_entropy", "--positives-cap", "2"], "no --positives_cap with cross_entropy"),
        (["--epoch", "3"], "did you mean 'epochs'"),
        (["--chunk-size", "0"], "--chunk_size to be at least 1, but got 0"),
        (["--momentum", "0.9"], "--queue_size with --momentum"),
        (["--queue-size", "500"], "at least a batch, 256 images in 2 views = 512 rows, but got 500"),
        (["--queue-size", "512", "--momentum", "1"], "--momentum to be in [0, 1), but got 1"),
        (["--queue-size", "512", "--positives-cap", "2"], "no --positives_cap with --queue_size"),
        (["--queue-size", "512", "--method", "cross_entropy"], "no --queue_size with cross_entropy"),
        (["--encoder-args.chanels", "3"], "chanels"),
        (["--samples-per-class", "200", "--batch-size", "200"], "at least 200 samples"),
        (["--data", "hf:nosuchfolder/"], "nosuchfolder"),
        (["--config", "{tmp}/bad.yaml"], "did you mean 'epochs'"),
        (["--output", "{tmp}/taken"], "already holds a run"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, message, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "hollow", dogs=4, cats=0)
    fill(tmp_path / "corrupt", dogs=4, cats=4)
    (tmp_path / "corrupt" / "cats" / "broken.png").write_bytes(b"no picture")
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
    assert not (tmp_path / "run").exists()


def coloured(folder, classes):
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(8):
            pixels = torch.randint(0, 90, (12, 12, 3), dtype=torch.uint8) + 20 * place
            Image.fromarray(pixels.numpy()).save(folder / name / f"{index}.png")


def test_other_classes_in_test_are_sought_among_each_other(tmp_path):
    coloured(tmp_path / "images" / "train", ["ape", "bee", "cat"])
    coloured(tmp_path / "images" / "test", ["dog", "eel", "fox"])
    data = ["--data", f"imagefolder:{tmp_path / 'images'}", "--batch-size", "8", "--epochs", "1"]
    metrics = run(tmp_path / "run", *data)
    assert metrics["retrieval/lone_queries"] == 0
    assert metrics["retrieval/precision_at_1"] > 1 / 3  # brighter from class to class
    assert "linear_probe/top1" not in metrics
    assert Image.open(tmp_path / "run" / "gallery.png").size


def test_some_classes_that_only_test_has_are_refused(tmp_path, capsys):
    coloured(tmp_path / "images" / "train", ["ape", "bee", "cat"])
    coloured(tmp_path / "images" / "test", ["ape", "bee", "cats"])
    with pytest.raises(SystemExit):
        run(tmp_path / "run", "--data", f"imagefolder:{tmp_path / 'images'}")
    assert "among those of train, all or none of them, but cats are not" in capsys.readouterr().err


def test_held_out_images_are_scored_in_the_place_of_the_test_split(tmp_path):
    """Whatever the test split is, the scores are the same; those of the test split are others."""
    options = [*QUICK, "--held-out", "0.3", "--pictures", "false"]
    found = {
        (scored, most): run(tmp_path / f"{scored}{most}", *options, "--scored", scored, "--max-test", most)
        for scored, most in (("held_out", 40), ("held_out", 100), ("test", 100))
    }
    scores = [
        {name: value for name, value in each.items() if name.startswith(("linear_probe/", "retrieval/"))}
        for each in found.values()
    ]
    assert scores[0] == scores[1] != scores[2]
    assert [each["scored"] for each in found.values()] == ["held_out", "held_out", "test"]
    assert not list((tmp_path / "test100").glob("*.png"))
