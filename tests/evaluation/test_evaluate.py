"""The evaluation as a user runs it: its results, files, cache, processes and errors."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from helpers.process_groups import free_port
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances
from sklearn.preprocessing import StandardScaler

from pml_supcon.data.load import load_data
from pml_supcon.evaluation import context
from pml_supcon.evaluation.app import main
from pml_supcon.evaluation.sections import SECTIONS
from pml_supcon.evaluation.settings import Section
from pml_supcon.models import create_encoder, load_encoder, save_encoder
from pml_supcon.training import app as train
from pml_supcon.training import features as embedding
from pml_supcon.training.digests import write_record
from pml_supcon.views import evaluation_transform

REPOSITORY = Path(__file__).parent.parent.parent
QUICK = ["--max-train", "300", "--max-test", "101", "--batch-size", "100", "--epochs", "2"]
FAST = ["--shares=0.1,1", "--draws=5", "--mining_batches=2", "--mining_batch_size=64", "--map_methods=pca"]
FAST += ["--corruptions=gaussian_noise,contrast", "--severities=1,5", "--map_points=50"]
PROBES = ["--sections", "retrieval,linear_probe"]
FEW = ["--knn_k", "3", "--shots", "1"]  # for classes with a dozen images


def evaluate(encoder, output, *flags):
    main([str(encoder), "--output", str(output), *FAST, *map(str, flags)])
    return json.loads((output / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "supcon"
    train.main([*QUICK, "--output", str(folder)])
    return folder


def test_the_flag_names_all_sections_in_their_order():
    assert get_args(Section) == tuple(SECTIONS)


@pytest.fixture
def copied_run(a_run, tmp_path):
    return Path(shutil.copytree(a_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def whole(a_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "evaluation"
    return folder, evaluate(a_run, folder)


@pytest.fixture
def computed(monkeypatch):
    """The number of images of each set that the encoder embeds from now on."""
    calls = []
    whole = context.compute_features
    monkeypatch.setattr(context, "compute_features", lambda *a, **k: calls.append(len(a[2])) or whole(*a, **k))
    return calls


def features_of(folder, *splits, mean, std, side=8):
    """Return the encoder's features of images, computed without the cache and the context."""
    encoder, transform = load_encoder(folder).eval(), evaluation_transform(side, mean=mean, std=std)
    with torch.no_grad():
        return [encoder(transform(images)) for images in splits]


def features_of_digits(run):
    data = load_data("digits", max_train=300, max_test=101)
    return data, features_of(run / "encoder", data.train.images, data.test.images, mean=data.mean, std=data.std)


def test_all_sections_are_evaluated(whole):
    folder, found = whole
    assert list(found["sections"]) == [
        "retrieval", "linear_probe", "calibration", "corruption", "projection_head", "hard_mining", "gallery", "map"
    ]  # fmt: skip
    assert (found["title"], found["data"]["test"]) == ("supcon_out on digits", 101)
    assert "<svg" in (folder / "report.html").read_text()
    assert {path.name for path in folder.iterdir()} == {"report.html", "evaluation.json"}


def test_scores_agree_with_features_computed_by_hand(a_run, whole):
    sections = whole[1]["sections"]
    data, (train, test) = features_of_digits(a_run)
    nearest = pairwise_distances(F.normalize(test).numpy(), F.normalize(train).numpy(), metric="cosine").argmin(1)
    precision = float((data.train_labels[nearest] == data.test_labels).double().mean())
    assert sections["retrieval"]["metrics"]["precision_at_1"] == pytest.approx(precision, abs=1e-6)
    scaler = StandardScaler().fit(train)
    probe = LogisticRegression(C=sections["linear_probe"]["inverse_l2"], max_iter=1000)
    accuracy = probe.fit(scaler.transform(train), data.train_labels).score(scaler.transform(test), data.test_labels)
    assert sections["linear_probe"]["metrics"]["top1"] == pytest.approx(accuracy, abs=0.011)  # one image, by rounding
    per_class = sections["retrieval"]["per_class"]
    mean = sum(row["precision_at_1"] * row["queries"] for row in per_class.values()) / 101
    assert mean == pytest.approx(precision, abs=1e-6)


def test_the_head_is_the_trained_one(a_run, whole):
    assert whole[1]["sections"]["hard_mining"]["of"] == "head"
    assert whole[1]["sections"]["projection_head"]["tasks"]["label"]["head"] is not None
    trained = load_file(max((a_run / "checkpoints").iterdir()) / "weights.safetensors")
    saved = load_file(a_run / "head.safetensors")
    assert saved
    for name, value in saved.items():
        assert any(torch.equal(value, other) for key, other in trained.items() if key.endswith(f"top.{name}")), name


# The cache


def test_a_second_evaluation_reads_the_cache(a_run, whole, tmp_path, computed):
    assert evaluate(a_run, tmp_path / "again")["sections"] == whole[1]["sections"]
    assert computed == []


def test_features_are_the_same_without_the_cache(a_run, whole, tmp_path, computed):
    found = evaluate(a_run, tmp_path / "plain", *PROBES, "--use_cache=false")
    assert computed == [101, 300]
    assert found["sections"]["retrieval"] == whole[1]["sections"]["retrieval"]


@pytest.mark.parametrize("change", ["weight", "size", "images", "mean"])
def test_changed_features_are_computed_again(copied_run, whole, tmp_path, computed, change):
    flags = {"size": ["--image_size", "16"], "images": ["--max_test", "99"]}.get(change, [])
    if change == "weight":
        weights = load_file(copied_run / "encoder" / "model.safetensors")
        key = next(name for name, value in weights.items() if value.is_floating_point())
        weights[key].view(-1)[0] += 1e-3
        save_file(weights, copied_run / "encoder" / "model.safetensors", metadata={"format": "pt"})
    elif change == "mean":
        config = json.loads((copied_run / "encoder" / "config.json").read_text())
        config["pretrained_cfg"]["mean"] = [0.25]
        (copied_run / "encoder" / "config.json").write_text(json.dumps(config))
    write_record(copied_run, json.loads((copied_run / "metrics.json").read_text()))
    evaluate(copied_run, tmp_path / "out", *PROBES, *flags)
    assert computed == ([99] if change == "images" else [101, 300])


@pytest.mark.parametrize("damage", ["changed", "foreign"])
def test_a_damaged_cache_is_computed_again_with_a_warning(copied_run, whole, tmp_path, computed, caplog, damage):
    for file in (copied_run / "features").iterdir():
        content = file.read_bytes()
        changed = content[:-1] + bytes([content[-1] ^ 1])
        file.write_bytes(changed if damage == "changed" else b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.")
    found = evaluate(copied_run, tmp_path / "out", *PROBES)
    assert computed == [101, 300]
    assert "computed again" in caplog.text
    assert found["sections"]["retrieval"] == whole[1]["sections"]["retrieval"]
    computed.clear()
    evaluate(copied_run, tmp_path / "out", *PROBES)  # the cache is valid again
    assert computed == []


def test_the_cache_tells_changes_and_parts_of_a_split_apart(a_run, tmp_path, computed):
    def computed_for(corruption_images, probe_images, severities):
        computed.clear()
        flags = ["--sections", "corruption,projection_head", "--cache", tmp_path / "cache", "--severities", severities]
        flags += ["--corruption_images", corruption_images, "--probe_images", probe_images]
        evaluate(a_run, tmp_path / "out", *flags)
        return computed[:]

    assert set(computed_for(40, 50, "1")) == {300, 40, 50}
    assert computed_for(40, 50, "1,3") == [40, 40]  # severity 3 of both corruptions
    assert computed_for(41, 50, "1") == [41, 41, 41]
    assert set(computed_for(5000, 9000, "1")) == {101, 300}


# Processes


@pytest.mark.slow
def test_two_processes_compute_the_features_of_one(a_run, whole, tmp_path):
    """101 test images in batches of 17 are six batches, the last smaller, which the processes take alternately."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    torchrun += ["--master_port", str(free_port()), str(REPOSITORY / "recipes" / "evaluate.py"), str(a_run), *FAST]
    torchrun += ["--batch_size", "17", "--cache", str(tmp_path / "of two"), "--output", str(tmp_path / "two")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(torchrun, env=environment, check=True, timeout=300, capture_output=True)
    two = json.loads((tmp_path / "two" / "evaluation.json").read_text())
    assert two["about"]["processes"] == 2
    one = evaluate(a_run, tmp_path / "one", "--batch_size", "17", "--cache", tmp_path / "of one")
    assert one["sections"].keys() == two["sections"].keys()
    scores = one["sections"]["retrieval"]["metrics"]
    assert two["sections"]["retrieval"]["metrics"] == pytest.approx(scores, abs=0.011)  # one image, by rounding
    files = {path.name for path in (tmp_path / "of one").iterdir()}
    assert files == {path.name for path in (tmp_path / "of two").iterdir()}
    assert len(files) > 5
    for name in files:
        rows = [load_file(tmp_path / folder / name)["features"] for folder in ("of one", "of two")]
        torch.testing.assert_close(*rows, rtol=1e-5, atol=1e-5)


# Comparison, other data


def test_two_encoders_are_compared(a_run, tmp_path):
    other = a_run / "encoder"  # without the head of the run
    flags = ["--sections", "retrieval,projection_head,hard_mining", "--probe_images", 100]
    found = evaluate(a_run, tmp_path / "out", "--compare", other, "--cache", tmp_path / "cache", *flags)
    compared = json.loads((tmp_path / "out" / "evaluation-compared.json").read_text())
    assert (found["title"], compared["title"]) == ("supcon_out on digits", f"{other} on digits")
    assert (found["sections"]["hard_mining"]["of"], compared["sections"]["hard_mining"]["of"]) == ("head", "encoder")
    assert compared["sections"]["projection_head"]["tasks"]["label"]["head"] is None
    assert compared["sections"]["retrieval"] == found["sections"]["retrieval"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(each["title"] in page for each in (found, compared))


def coloured_folder(path, classes, test_classes=(), *, counts=(12, 12), side=16):
    """Write noisy images with a mean colour for each class, in train and test if both are given; return the data."""
    splits = [("train", classes), ("test", test_classes)] if test_classes else [("", classes)]
    for seed, (split, names) in enumerate(splits):
        rng = np.random.default_rng(seed)
        for place, name in enumerate(names):
            (path / split / name).mkdir(parents=True)
            for index in range(counts[seed]):
                pixels = rng.integers(0, 200, (side, side, 3)) + 9 * np.array([place % 3, place % 2, 1])
                Image.fromarray(pixels.astype(np.uint8)).save(path / split / name / f"{index}.png")
    return f"imagefolder:{path}"


@pytest.fixture
def colour_encoder(tmp_path):
    torch.manual_seed(0)
    encoder = create_encoder("resnet10t", image_size=16, channels=[8, 8, 16, 16]).eval()
    return save_encoder(encoder, tmp_path / "encoder", mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2))


def test_transfer_is_to_other_data(colour_encoder, tmp_path, capsys):
    home = coloured_folder(tmp_path / "home", ["ape", "bee", "cat"])
    away = coloured_folder(tmp_path / "away", ["dog", "eel"], ["dog", "eel", "fox"], counts=(20, 5))
    flags = ["--data", home, "--transfer", f"{home},{away}", "--sections", "transfer,linear_probe", *FEW]
    found = evaluate(colour_encoder, tmp_path / "out", *flags)
    printed = capsys.readouterr().out
    assert f"data {away}: " in printed
    assert f"data {home}: " in printed
    same, other = found["sections"]["transfer"]
    assert same["linear_probe"]["top1"] == found["sections"]["linear_probe"]["metrics"]["top1"]
    assert (other["classes"], other["train"], other["test"]) == (3, 40, 15)
    assert other["linear_probe"]["top1"] <= 2 / 3
    assert any("fox (5)" in text and away in text for text in found["notes"])


def test_test_images_of_new_classes_are_searched_among_each_other(colour_encoder, tmp_path):
    data = coloured_folder(tmp_path / "images", ["ape", "bee", "cat"], ["dog", "eel", "fox"])
    found = evaluate(colour_encoder, tmp_path / "out", "--data", data, *FEW)
    assert set(found["sections"]) == {"retrieval", "hard_mining", "gallery", "map"}
    assert found["sections"]["retrieval"]["references"] == 36
    assert set(found["sections"]["retrieval"]["per_class"]) == {"dog", "eel", "fox"}
    assert any("zero-shot" in text for text in found["notes"])
    paths = sorted((tmp_path / "images" / "test").rglob("*.png"))
    images = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths])
    rows = F.normalize(*features_of(colour_encoder, images, mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2), side=16))
    classes = np.array([path.parent.name for path in paths])
    precision = float((classes == classes[(rows @ rows.T).fill_diagonal_(-1).argmax(1)]).mean())
    assert precision < 1
    assert found["sections"]["retrieval"]["metrics"]["precision_at_1"] == pytest.approx(precision, abs=1e-6)


def test_a_class_without_training_images_is_scored_and_noted(colour_encoder, tmp_path):
    data = coloured_folder(tmp_path / "images", ["ape", "bee", "cat"], ["ape", "bee", "fox"])
    found = evaluate(colour_encoder, tmp_path / "out", "--data", data, *FEW)
    assert found["data"]["classes"] == ["ape", "bee", "cat", "fox"]
    assert "colour" in found["sections"]["projection_head"]["tasks"]
    assert found["sections"]["retrieval"]["lone_queries"] == 12
    notes = " ".join(found["notes"])
    assert "fox (12)" in notes
    assert "12 of 36 test images have no reference of their class" in notes


def test_images_of_several_sizes_are_cached_until_a_file_changes(colour_encoder, tmp_path, computed):
    coloured_folder(tmp_path / "images", ["ape", "bee"], side=16)
    data = coloured_folder(tmp_path / "images", ["cat"], side=20)
    flags = ["--data", data, *PROBES, *FEW, "--cache", tmp_path / "cache"]
    evaluate(colour_encoder, tmp_path / "out", *flags)
    first = len(computed)
    evaluate(colour_encoder, tmp_path / "out", *flags)
    assert len(computed) == first
    file = next((tmp_path / "images" / "ape").iterdir())
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(file)
    evaluate(colour_encoder, tmp_path / "out", *flags)
    assert len(computed) == first + 2  # one folder holds the images of train and test


def test_a_folder_of_timm(tmp_path):
    """The folder has a classifier and no description of ours; the features are the encoder's."""
    model = timm.create_model("resnet10t", num_classes=7, channels=(8, 8, 16, 16)).eval()
    timm.models.save_for_hf(model, tmp_path / "timm", model_args={"channels": [8, 8, 16, 16]}, safe_serialization=True)
    data = coloured_folder(tmp_path / "images", ["ape", "bee", "cat"])
    flags = ["--data", data, "--image_size", "32", "--sections", "map"]
    evaluate(tmp_path / "timm", tmp_path / "out", *flags, "--cache", tmp_path / "cache")
    [file] = (tmp_path / "cache").iterdir()
    config = timm.data.resolve_model_data_config(model)
    transform = evaluation_transform(32, mean=config["mean"], std=config["std"])
    with torch.no_grad():
        images = transform(load_data(data).test.images)
        by_hand = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.allclose(load_file(file)["features"], by_hand, atol=1e-5)


def test_a_section_that_the_data_does_not_support_is_left_out_and_noted(colour_encoder, tmp_path):
    data = coloured_folder(tmp_path / "images", ["ape", "bee", "cat"], ["ape", "bee", "cat"], counts=(1, 2))
    found = evaluate(colour_encoder, tmp_path / "out", "--data", data, "--knn_k", "1")
    assert "retrieval" in found["sections"]
    assert "linear_probe" not in found["sections"]
    assert any("linear_probe is left out" in text for text in found["notes"])


# Bad input


@pytest.fixture
def error_of(capsys):
    """A function that runs the program with arguments that it refuses, and returns its only line."""

    def refused(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments)])
        assert ended.value.code in (1, 2)
        [line] = capsys.readouterr().err.strip().splitlines()
        return line

    return refused


def test_an_encoder_that_is_missing_or_unfinished_is_refused(error_of, tmp_path, a_run):
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished").mkdir()
    shutil.copy(a_run / "config.yaml", tmp_path / "unfinished")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "encoder.pth")
    for encoder, text in (
        (tmp_path / "empty", "model.safetensors"),
        ("nothing/here", "there is no nothing/here"),
        ("resnet_of_mine", "there is no resnet_of_mine"),
        (tmp_path / "encoder.pth", "is a file"),
        (tmp_path / "unfinished", "has no metrics.json: continue it with `--output "),
    ):
        assert text in error_of(encoder, "--data", "digits")


@pytest.mark.parametrize("damage", ["pickle", "other weights", "no json"])
def test_a_damaged_or_foreign_encoder_is_refused_and_never_unpickled(error_of, copied_run, monkeypatch, damage):
    monkeypatch.chdir(copied_run)
    folder = (copied_run / "encoder").rename(copied_run / "copy")  # which has no digests
    if damage == "pickle":
        (folder / "model.safetensors").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    elif damage == "other weights":
        save_file({"weight": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        (folder / "config.json").write_text("{")
    assert f"Expected {folder} to hold an encoder" in error_of(folder, "--data", "digits")
    assert not (copied_run / "hacked").exists()


def test_a_damaged_head_is_refused(error_of, copied_run):
    save_file({"weight": torch.zeros(3)}, copied_run / "head.safetensors")
    write_record(copied_run, {})
    assert "head.safetensors to be a file of `save_head`" in error_of(copied_run)


def test_features_that_are_not_finite_are_counted(error_of, copied_run, tmp_path):
    weights = load_file(copied_run / "encoder" / "model.safetensors")
    weights[max(weights, key=lambda name: weights[name].numel())].fill_(torch.nan)
    save_file(weights, copied_run / "encoder" / "model.safetensors", metadata={"format": "pt"})
    write_record(copied_run, {})
    assert "NaN or infinity for 101 of 101 test images" in error_of(copied_run, "--output", tmp_path / "out")


def test_data_that_does_not_fit_the_encoder_is_refused(error_of, colour_encoder, tmp_path):
    said = error_of(colour_encoder, "--data", "digits", "--output", tmp_path / "out")
    assert "images with 3 channels" in said
    assert "the images of digits have 1" in said
    assert "Expected --data" in error_of(colour_encoder)
    data = coloured_folder(tmp_path / "images", ["ape", "bee", "cat"], ["dog", "eel", "fox"])
    said = error_of(colour_encoder, "--data", data, "--sections", "linear_probe")
    assert "for --sections linear_probe, but train and test share none" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sections", "retrieval,probes"], "probes"),
        (["--recall_at", "0"], "--recall_at to be at least 1, but got 0"),
        (["--severities", "6"], "--severities to be from 1 to 5, but got 6"),
        (["--sections", "transfer"], "--transfer to name data"),
        (["--inverse_l2", "0"], "--inverse_l2 to be above 0"),
        (["--index", "hsnw"], "did you mean 'hnsw'"),
        (["--retries", "3"], "retries"),
        (["--corruptions", "gausian_noise"], "did you mean 'gaussian_noise'"),
        (["--probe_optimizer", "larz"], "lars"),
        (["--transfer", "imagefolder:/no/such"], "/no/such"),
        (["--output", __file__], "--output to be a folder"),
    ],
)
def test_bad_settings_are_refused_by_name(error_of, a_run, tmp_path, flags, said):
    assert said in error_of(a_run, "--output", tmp_path / "out", *flags)


def test_more_neighbours_than_images_are_noted(a_run, tmp_path, caplog):
    found = evaluate(a_run, tmp_path / "out", "--sections", "retrieval", "--recall_at", "1,1000")
    assert "1000 neighbours, but there are 300" in caplog.text
    assert found["sections"]["retrieval"]["metrics"]["recall_at_1000"] == 1.0


def test_embed_returns_rows_in_the_order_of_the_indices(a_run):
    data, (_, test) = features_of_digits(a_run)
    prepared = embedding.ImagesToEmbed(data.test, image_size=8, mean=data.mean, std=data.std)
    some = [7, 3, 100, 50, 51]  # the last batch is smaller
    found = embedding.compute_features(
        load_encoder(a_run / "encoder"), prepared, some, Accelerator(cpu=True), batch_size=2
    )
    assert torch.allclose(found, test[some], atol=1e-5)
