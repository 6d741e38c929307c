"""The evaluation as a user runs it: its results, files, cache, processes and errors."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.process_groups import free_port
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances
from sklearn.preprocessing import StandardScaler

from pml_supcon.data.load import load_data
from pml_supcon.evaluation import context
from pml_supcon.evaluation.app import main
from pml_supcon.models import create_encoder, load_encoder, save_encoder
from pml_supcon.training import app as train
from pml_supcon.training import features as embedding
from pml_supcon.views import evaluation_transform

REPOSITORY = Path(__file__).parent.parent.parent
QUICK = ["--max-train", "300", "--max-test", "101", "--batch-size", "100", "--epochs", "2"]
FAST = ["--shares=0.1,1", "--draws=5", "--mining_batches=2", "--mining_batch_size=64", "--map_methods=pca"]
FAST += ["--corruptions=gaussian_noise,contrast", "--severities=1,5", "--map_points=50"]
PROBES = ["--sections", "retrieval,linear_probe"]


def evaluate(encoder, output, *flags):
    main([str(encoder), "--output", str(output), *FAST, *map(str, flags)])
    return json.loads((output / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "supcon"
    train.main([*QUICK, "--output", str(folder)])
    return folder


@pytest.fixture(scope="module")
def whole(a_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "evaluation"
    return folder, evaluate(a_run, folder)


@pytest.fixture
def computed(monkeypatch):
    """The number of images of each set that the encoder embeds from now on."""
    calls = []
    whole = context.embed
    monkeypatch.setattr(context, "embed", lambda *a, **k: calls.append(len(a[2])) or whole(*a, **k))
    return calls


def features_of(folder):
    """The encoder's features, computed without the cache and the context."""
    encoder, data = load_encoder(folder / "encoder").eval(), load_data("digits", max_train=300, max_test=101)
    transform = evaluation_transform(8, mean=data.mean, std=data.std)
    with torch.no_grad():
        train, test = encoder(transform(data.train.images)), encoder(transform(data.test.images))
    return train, data.train_labels, test, data.test_labels


def test_all_sections_are_there(whole):
    folder, found = whole
    assert list(found["sections"]) == [
        "retrieval", "linear_probe", "calibration", "corruption", "projection_head", "hard_mining", "gallery", "map"
    ]  # fmt: skip
    assert found["data"]["test"] == 101
    assert found["title"] == "supcon_out on digits"
    page = (folder / "report.html").read_text()
    assert "<svg" in page
    assert {path.name for path in folder.iterdir()} == {"report.html", "evaluation.json"}


def test_figures_agree_with_features_computed_by_hand(a_run, whole):
    sections = whole[1]["sections"]
    train, learnt, test, wanted = features_of(a_run)
    nearest = pairwise_distances(F.normalize(test).numpy(), F.normalize(train).numpy(), metric="cosine").argmin(1)
    precision = float((learnt[nearest] == wanted).double().mean())
    assert sections["retrieval"]["metrics"]["precision_at_1"] == pytest.approx(precision, abs=1e-6)
    scaler = StandardScaler().fit(train)
    penalty = sections["linear_probe"]["inverse_l2"]
    probe = LogisticRegression(C=penalty, max_iter=1000).fit(scaler.transform(train), learnt)
    accuracy = probe.score(scaler.transform(test), wanted)
    assert sections["linear_probe"]["metrics"]["top1"] == pytest.approx(accuracy, abs=0.011)  # one image, by rounding
    per_class = sections["retrieval"]["per_class"]
    mean = sum(row["precision_at_1"] * row["queries"] for row in per_class.values()) / 101
    assert mean == pytest.approx(precision, abs=1e-6)


def test_the_head_is_the_one_that_was_trained(a_run, whole):
    assert whole[1]["sections"]["hard_mining"]["of"] == "head"
    found = whole[1]["sections"]["projection_head"]["tasks"]["label"]
    assert found["head"] is not None
    trained = load_file(max((a_run / "checkpoints").iterdir()) / "weights.safetensors")
    saved = load_file(a_run / "head.safetensors")
    assert saved
    for name, value in saved.items():
        assert any(torch.equal(value, other) for key, other in trained.items() if key.endswith(f"top.{name}")), name


# The cache


def test_a_second_evaluation_reads_the_cache(a_run, whole, tmp_path, computed):
    again = evaluate(a_run, tmp_path / "again")
    assert computed == []
    assert again["sections"] == whole[1]["sections"]


def test_without_the_cache_all_is_computed_to_the_same(a_run, whole, tmp_path, computed):
    found = evaluate(a_run, tmp_path / "plain", *PROBES, "--use_cache=false")
    assert computed == [101, 300]
    assert found["sections"]["retrieval"] == whole[1]["sections"]["retrieval"]


@pytest.mark.parametrize("change", ["weight", "size", "images", "mean", "std"])
def test_what_changes_is_computed_again(a_run, whole, tmp_path, computed, change):
    run = tmp_path / "changed"
    shutil.copytree(a_run, run)
    flags = []
    if change == "weight":
        weights = load_file(run / "encoder" / "model.safetensors")
        key = next(name for name, value in weights.items() if value.is_floating_point())
        weights[key].view(-1)[0] += 1e-3
        save_file(weights, run / "encoder" / "model.safetensors", metadata={"format": "pt"})
    elif change == "size":
        flags = ["--image_size", "16"]
    elif change == "images":
        flags = ["--max_test", "99"]
    else:
        config = json.loads((run / "encoder" / "config.json").read_text())
        config["pretrained_cfg"][change] = [0.25]
        (run / "encoder" / "config.json").write_text(json.dumps(config))
    evaluate(run, tmp_path / "out", *PROBES, *flags)
    assert computed == ([99] if change == "images" else [101, 300])


@pytest.mark.parametrize("damage", ["changed", "foreign"])
def test_a_damaged_cache_is_computed_again_with_a_warning(a_run, whole, tmp_path, computed, caplog, damage):
    run = tmp_path / "run"
    shutil.copytree(a_run, run)
    for file in (run / "features").iterdir():
        content = file.read_bytes()
        if damage == "changed":
            content = content[:-1] + bytes([content[-1] ^ 1])
        else:
            content = b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR."
        file.write_bytes(content)
    found = evaluate(run, tmp_path / "out", *PROBES)
    assert computed == [101, 300]
    assert "computed again" in caplog.text
    assert found["sections"]["retrieval"] == whole[1]["sections"]["retrieval"]
    computed.clear()
    evaluate(run, tmp_path / "out", *PROBES)  # what was made again is whole
    assert computed == []


def test_a_change_of_the_images_has_a_place_of_its_own_in_the_cache(a_run, tmp_path, computed):
    flags = ["--sections", "corruption", "--cache", tmp_path / "cache"]
    evaluate(a_run, tmp_path / "out", *flags)
    assert computed == [300, 101, 101, 101, 101, 101]
    evaluate(a_run, tmp_path / "out", *flags, "--severities", "1,3")
    assert computed[6:] == [101, 101]  # severity 3 of both


def test_some_of_the_images_have_a_place_of_their_own_in_the_cache(a_run, tmp_path, computed):
    flags = ["--sections", "corruption,projection_head", "--cache", tmp_path / "cache", "--severities", "1"]
    evaluate(a_run, tmp_path / "out", *flags, "--corruption_images", "40", "--probe_images", "50")
    assert set(computed) == {300, 40, 50}
    before = len(computed)
    evaluate(a_run, tmp_path / "out", *flags, "--corruption_images", "41", "--probe_images", "50")
    assert computed[before:] == [41, 41, 41]
    evaluate(a_run, tmp_path / "out", *flags, "--corruption_images", "5000", "--probe_images", "9000")
    assert set(computed[before + 3 :]) == {101, 300}


# Processes


@pytest.mark.slow
def test_two_processes_give_the_same_as_one(a_run, whole, tmp_path):
    """101 test images in batches of 17: six of them, the last smaller, by turns.

    Scores are computed by one process from all features, which the two runs keep in caches of their own.
    """
    script = [str(REPOSITORY / "recipes" / "evaluate.py"), str(a_run), *FAST, "--batch_size", "17", "--cache"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    torchrun += ["--master_port", str(free_port())]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*torchrun, *script, str(tmp_path / "of two"), "--output", str(tmp_path / "two")],
        env=environment, check=True, timeout=300, capture_output=True,
    )  # fmt: skip
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


def test_two_encoders_stand_side_by_side(a_run, tmp_path, capsys):
    other = tmp_path / "other"
    train.main([*QUICK, "--method", "cross_entropy", "--output", str(other)])
    evaluate(a_run, tmp_path / "out", "--compare", other)
    compared = json.loads((tmp_path / "out" / "evaluation-compared.json").read_text())
    assert compared["title"] == "cross_entropy on digits"
    assert compared["sections"]["hard_mining"]["of"] == "encoder"
    assert compared["sections"]["projection_head"]["tasks"]["label"]["head"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "supcon_out on digits" in page
    assert "cross_entropy on digits" in page
    assert (other / "features").is_dir()


def coloured_folder(path, classes, *, seed=0, count=12, side=16):
    """Write noisy images, with a different mean colour for each class."""
    rng = np.random.default_rng(seed)
    for place, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 200, (side, side, 3)) + 9 * np.array([place % 3, place % 2, 1])
            Image.fromarray(pixels.astype(np.uint8)).save(path / name / f"{index}.png")


@pytest.fixture
def colour_encoder(tmp_path):
    torch.manual_seed(0)
    encoder = create_encoder("resnet10t", image_size=16, channels=[8, 8, 16, 16]).eval()
    return save_encoder(encoder, tmp_path / "encoder", mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2))


def test_an_image_folder_and_an_encoder_without_a_run(colour_encoder, tmp_path):
    coloured_folder(tmp_path / "images", ["ape", "bee", "cat"])
    spec = f"imagefolder:{tmp_path / 'images'}"
    found = evaluate(
        colour_encoder, tmp_path / "out", "--data", spec, "--transfer", spec, "--shots", "1", "--knn_k", "3"
    )
    assert found["data"]["classes"] == ["ape", "bee", "cat"]
    assert "colour" in found["sections"]["projection_head"]["tasks"]
    [there] = found["sections"]["transfer"]
    assert there["linear_probe"]["top1"] == found["sections"]["linear_probe"]["metrics"]["top1"]
    assert there["classes"] == 3


def test_transfer_is_to_other_images(colour_encoder, tmp_path):
    coloured_folder(tmp_path / "home", ["ape", "bee", "cat"])
    coloured_folder(tmp_path / "away" / "train", ["dog", "eel"], count=20)
    coloured_folder(tmp_path / "away" / "test", ["dog", "eel", "fox"], count=5, seed=1)
    spec = f"imagefolder:{tmp_path / 'away'}"
    flags = ["--data", f"imagefolder:{tmp_path / 'home'}", "--transfer", spec, "--sections", "transfer", "--knn_k", "3"]
    found = evaluate(colour_encoder, tmp_path / "out", *flags)
    [there] = found["sections"]["transfer"]
    assert (there["classes"], there["train"], there["test"]) == (3, 40, 15)
    assert there["linear_probe"]["top1"] <= 2 / 3
    assert any("fox (5)" in text and spec in text for text in found["notes"])


def features_by_hand(folder, images, *, mean, std):
    transform = evaluation_transform(16, mean=mean, std=std)
    with torch.no_grad():
        return load_encoder(folder).eval()(transform(images))


def test_classes_of_test_alone_are_searched_among_each_other(colour_encoder, tmp_path):
    coloured_folder(tmp_path / "images" / "train", ["ape", "bee", "cat"])
    coloured_folder(tmp_path / "images" / "test", ["dog", "eel", "fox"], seed=1)
    found = evaluate(colour_encoder, tmp_path / "out", "--data", f"imagefolder:{tmp_path / 'images'}", "--knn_k", "3")
    assert set(found["sections"]) == {"retrieval", "hard_mining", "gallery", "map"}
    assert found["sections"]["retrieval"]["references"] == 36
    assert set(found["sections"]["retrieval"]["per_class"]) == {"dog", "eel", "fox"}
    assert any("zero-shot" in text for text in found["notes"])
    paths = sorted((tmp_path / "images" / "test").rglob("*.png"))
    images = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths])
    rows = F.normalize(features_by_hand(colour_encoder, images, mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2)))
    classes = np.array([path.parent.name for path in paths])
    nearest = (rows @ rows.T).fill_diagonal_(-1).argmax(1)
    precision = float((classes == classes[nearest]).mean())
    assert precision < 1
    assert found["sections"]["retrieval"]["metrics"]["precision_at_1"] == pytest.approx(precision, abs=1e-6)


def test_a_class_that_train_lacks_is_scored_and_noted(colour_encoder, tmp_path):
    coloured_folder(tmp_path / "images" / "train", ["ape", "bee", "cat"])
    coloured_folder(tmp_path / "images" / "test", ["ape", "bee", "fox"], seed=1)
    found = evaluate(
        colour_encoder, tmp_path / "out", "--data", f"imagefolder:{tmp_path / 'images'}", "--knn_k", "3", "--shots", "1"
    )
    assert found["sections"]["retrieval"]["lone_queries"] == 12
    notes = " ".join(found["notes"])
    assert "fox (12)" in notes
    assert "12 of 36 test images have no reference of their class" in notes


def test_images_of_several_sizes_are_read_as_they_are_needed(colour_encoder, tmp_path, computed):
    coloured_folder(tmp_path / "images", ["ape", "bee"], side=16)
    coloured_folder(tmp_path / "images", ["cat"], side=20)
    flags = ["--data", f"imagefolder:{tmp_path / 'images'}", *PROBES, "--knn_k", "3", "--shots", "1"]
    evaluate(colour_encoder, tmp_path / "out", *flags, "--cache", tmp_path / "cache")
    first = len(computed)
    evaluate(colour_encoder, tmp_path / "out", *flags, "--cache", tmp_path / "cache")
    assert len(computed) == first
    file = next((tmp_path / "images" / "ape").iterdir())
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(file)  # the file has changed: its split is computed again
    evaluate(colour_encoder, tmp_path / "out", *flags, "--cache", tmp_path / "cache")
    assert len(computed) == first + 2  # the split into train and test selects from one folder


def test_a_folder_of_timm(tmp_path):
    """With a classifier and without our description: the features are the encoder's."""
    model = timm.create_model("resnet10t", num_classes=7, channels=(8, 8, 16, 16)).eval()
    timm.models.save_for_hf(model, tmp_path / "timm", model_args={"channels": [8, 8, 16, 16]}, safe_serialization=True)
    coloured_folder(tmp_path / "images", ["ape", "bee", "cat"])
    flags = ["--data", f"imagefolder:{tmp_path / 'images'}", "--image_size", "32", "--sections", "map"]
    evaluate(tmp_path / "timm", tmp_path / "out", *flags, "--cache", tmp_path / "cache")
    [file] = (tmp_path / "cache").iterdir()
    config = timm.data.resolve_model_data_config(model)
    images = load_data(f"imagefolder:{tmp_path / 'images'}").test.images
    transform = evaluation_transform(32, mean=config["mean"], std=config["std"])
    with torch.no_grad():
        by_hand = model.forward_head(model.forward_features(transform(images)), pre_logits=True)
    assert torch.allclose(load_file(file)["features"], by_hand, atol=1e-5)


def test_a_section_that_the_data_does_not_support_is_left_out_and_noted(colour_encoder, tmp_path):
    coloured_folder(tmp_path / "images" / "train", ["ape", "bee", "cat"], count=1)
    coloured_folder(tmp_path / "images" / "test", ["ape", "bee", "cat"], count=2)
    found = evaluate(colour_encoder, tmp_path / "out", "--data", f"imagefolder:{tmp_path / 'images'}", "--knn_k", "1")
    assert "retrieval" in found["sections"]
    assert "linear_probe" not in found["sections"]
    assert any("linear_probe is left out" in text for text in found["notes"])


# Bad input


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert ended.value.code in (1, 2)
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    return said[0]


def test_no_encoder(capsys, tmp_path, a_run):
    (tmp_path / "empty").mkdir()
    assert "model.safetensors" in error_of(capsys, tmp_path / "empty", "--data", "digits")
    assert "there is no nothing/here" in error_of(capsys, "nothing/here", "--data", "digits")
    assert "there is no resnet_of_mine" in error_of(capsys, "resnet_of_mine", "--data", "digits")
    pickled = tmp_path / "encoder.pth"
    torch.save(torch.nn.Linear(2, 2), pickled)
    assert "is a file" in error_of(capsys, pickled, "--data", "digits")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(a_run / "config.yaml", unfinished)
    assert "has no encoder: continue it" in error_of(capsys, unfinished)


@pytest.mark.parametrize("damage", ["pickle", "other weights", "no json"])
def test_a_damaged_or_foreign_encoder_is_refused_and_never_unpickled(capsys, tmp_path, a_run, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "encoder"
    shutil.copytree(a_run / "encoder", folder)
    weights = folder / "model.safetensors"
    if damage == "pickle":
        weights.write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    elif damage == "other weights":
        save_file({"weight": torch.zeros(3)}, weights, metadata={"format": "pt"})
    else:
        (folder / "config.json").write_text("{")
    assert f"Expected {folder} to hold an encoder" in error_of(capsys, folder, "--data", "digits")
    assert not (tmp_path / "hacked").exists()


def test_a_damaged_head_is_refused(capsys, tmp_path, a_run):
    run = tmp_path / "run"
    shutil.copytree(a_run, run)
    save_file({"weight": torch.zeros(3)}, run / "head.safetensors")
    assert "head.safetensors to be a file of `save_head`" in error_of(capsys, run)


def test_channels_that_do_not_fit(capsys, tmp_path, colour_encoder):
    said = error_of(capsys, colour_encoder, "--data", "digits", "--output", tmp_path / "out")
    assert "images with 3 channels" in said
    assert "the images of digits have 1" in said


def test_features_that_are_not_finite_are_counted(capsys, tmp_path, a_run):
    run = tmp_path / "run"
    shutil.copytree(a_run, run)
    weights = load_file(run / "encoder" / "model.safetensors")
    weights[max(weights, key=lambda name: weights[name].numel())].fill_(torch.nan)
    save_file(weights, run / "encoder" / "model.safetensors", metadata={"format": "pt"})
    assert "NaN or infinity for 101 of 101 test images" in error_of(capsys, run, "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data", "digitz"], "did you mean 'digits'"),
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
        (["--corruption_baseline", "/no/such.json"], "/no/such.json"),
    ],
)
def test_bad_settings_are_refused_by_name(capsys, a_run, tmp_path, flags, said):
    assert said in error_of(capsys, a_run, "--output", tmp_path / "out", *flags)


def test_a_section_that_needs_shared_classes_is_refused_without_any(colour_encoder, tmp_path, capsys):
    coloured_folder(tmp_path / "images" / "train", ["ape", "bee", "cat"])
    coloured_folder(tmp_path / "images" / "test", ["dog", "eel", "fox"])
    data = ["--data", f"imagefolder:{tmp_path / 'images'}", "--sections", "linear_probe"]
    assert "for --sections linear_probe, but train and test share none" in error_of(capsys, colour_encoder, *data)


def test_an_output_that_is_a_file(a_run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "--output to be a folder" in error_of(capsys, a_run, "--output", tmp_path / "file")


def test_no_data_for_an_encoder_without_a_run(capsys, colour_encoder):
    assert "Expected --data" in error_of(capsys, colour_encoder)


def test_more_neighbours_than_images_are_noted(a_run, tmp_path, caplog):
    found = evaluate(a_run, tmp_path / "out", "--sections", "retrieval", "--recall_at", "1,1000")
    assert "1000 neighbours, but there are 300" in caplog.text
    assert found["sections"]["retrieval"]["metrics"]["recall_at_1000"] == 1.0


def test_embed_gives_rows_in_order(a_run):
    """Batches of a size that does not split_training_set, of some images in an order of their own."""
    from accelerate import Accelerator

    encoder, data = load_encoder(a_run / "encoder"), load_data("digits", max_train=300, max_test=101)
    prepared = embedding.ImagesToEmbed(data.test, image_size=8, mean=data.mean, std=data.std)
    some = [7, 3, 100, 50, 51]
    found = embedding.embed(encoder, prepared, some, Accelerator(cpu=True), batch_size=2)
    assert torch.allclose(found, features_of(a_run)[2][some], atol=1e-5)
