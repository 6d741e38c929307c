"""Bad input to the three programs: one line of error at once, exit status 1 or 2, nothing left on disk."""

import json
import os
import pickle
import time
from collections import Counter
from itertools import pairwise

import pytest
import timm
import torch
from helpers.image_folders import write_classes
from PIL import Image
from safetensors.torch import save_file

from pml_supcon.data.load import load_data
from pml_supcon.evaluation import app as evaluate
from pml_supcon.evaluation.cache import FeatureCache
from pml_supcon.experiments import app as reproduce
from pml_supcon.models import create_encoder, pretrained, save_encoder
from pml_supcon.training import app as train
from pml_supcon.training.digests import write_record

PROGRAMS = {"train": train.main, "evaluate": evaluate.main, "reproduce": reproduce.main}
SECONDS = 20  # far below the minutes of the slow cases, far above what a refusal takes on a busy machine

NAMES = "abcdefghij"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise(NAMES)
)
#: Contents of a file of settings, and the reason of its refusal.
CONFIGS = {
    "bomb": (BOMB.encode(), "YAML, but: Expected values in full, but got the alias *a"),
    "deep_flow": (b"data: " + b"[" * 100_000, "at most 20 levels of lists and mappings"),
    "deep_block": ("".join(f"{' ' * i}a:\n" for i in range(500)).encode(), "at most 20 levels"),
    "utf16": ("epochs: 3\n".encode("utf-16"), "YAML in UTF-8, but it is not"),
    "latin1": ("data: caf\xe9\n".encode("latin-1"), "YAML in UTF-8, but it is not"),
    "zeros": (bytes(100), "unacceptable character"),
    "zip": (b"PK\x03\x04" + bytes(range(256)), "YAML in UTF-8, but it is not"),
    "large": (b"#" * 2_000_000, "at most 1048576 bytes, but it has 2000000"),
    "empty": (b"", "but it holds nothing"),
    "text": (b"hello", "but it holds str"),
    "list": (b"- 1\n", "but it holds list"),
    "code": (b"data: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
    "digits": (b"seed: " + b"9" * 6000, "Exceeds the limit"),
    "date": (b"data: 2001-99-99\n", "month must be in 1..12"),
    "unhashable": (b"{[1]: 2}\n", "found unhashable key"),
    "documents": (b"seed: 1\n---\nseed: 2\n", "expected a single document"),
}
#: Arguments of an encoder, and the reason of their refusal.
ENCODERS = {
    "resnet10t": {
        '{"channels": []}': "timm could not build resnet10t",
        '{"channels": "many"}': "timm could not build resnet10t",
        '{"features_only": true}': "to return pooled features, but got FeatureListNet",
        '{"device": "meta"}': "to have weights with values, but got meta",
        '{"device": "abacus"}': "timm could not build resnet10t",
        '{"act_layer": "no_such_layer"}': "timm could not build resnet10t",
        '{"norm_layer": "no_such_layer"}': "timm could not build resnet10t",
        '{"no_such_argument": 1}': "unexpected keyword argument 'no_such_argument'",
        '{"drop_rate": 5}': "dropout probability has to be between 0 and 1",
        '{"drop_path_rate": 5}': "resnet10t does not accept images of 8 x 8",
        '{"global_pool": ""}': "to return pooled features of shape",
        '{"output_stride": 3}': "timm could not build resnet10t",
        '{"in_chans": 3}': "multiple values for keyword argument 'in_chans'",
        '{"num_classes": 3}': "no argument `num_classes`",
        '{"layers": {"a": 1}}': "timm could not build resnet10t",
        '{"base_width": 0}': "BasicBlock does not support changing base width",
    },
    "vit_tiny_patch16_224": {
        '{"patch_size": 0}': "timm could not build vit_tiny_patch16_224",
        '{"patch_size": 3}': "multiple of the patch size 3",
        '{"patch_size": 4, "num_heads": 5}': "timm could not build vit_tiny_patch16_224",
        '{"patch_size": 4, "depth": "x"}': "timm could not build vit_tiny_patch16_224",
        '{"patch_size": 4, "global_pool": "no_such_pool"}': "timm could not build vit_tiny_patch16_224",
        '{"patch_size": 4, "attn_drop_rate": -1}': "dropout probability has to be between 0 and 1, but got -1",
    },
}


def pipe(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """A function that runs a program in an empty folder and returns its one line of error."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(program, *arguments):
        started = time.perf_counter()
        with pytest.raises(SystemExit) as ended:
            PROGRAMS[program]([str(argument) for argument in arguments])
        assert time.perf_counter() - started < SECONDS
        assert ended.value.code in (1, 2)
        lines = capfd.readouterr().err.splitlines()
        if program == "reproduce" and lines[0].startswith("usage"):  # argparse
            lines = lines[1:]
        assert len(lines) == 1, lines
        assert lines[0].startswith(f"{program}.py: error: ")
        left = {path.name for path in (tmp_path / "work").rglob("*") if path.is_file()}
        assert left <= {"broken_images.txt", ".lock"}, left  # the list of broken images, in the folder of the run
        return lines[0]

    return run


# settings


@pytest.mark.parametrize("name", CONFIGS)
def test_damaged_settings(name, tmp_path, refused):
    content, reason = CONFIGS[name]
    (tmp_path / name).write_bytes(content)
    for program, first in (("train", []), ("evaluate", ["resnet18"])):
        message = refused(program, *first, "--config", tmp_path / name)
        assert f"Expected {tmp_path / name} to" in message
        assert reason in message


@pytest.mark.parametrize("name", ["bomb", "deep_flow", "utf16", "zeros", "digits", "empty", "pipe"])
def test_damaged_settings_of_a_run(name, tmp_path, refused):
    run = tmp_path / "run"
    run.mkdir()
    if name == "pipe":
        pipe(run / "config.yaml")
    else:
        (run / "config.yaml").write_bytes(CONFIGS[name][0])
    again = refused("train", "--resume", "--output", run)
    with_settings = refused("train", "--resume", "--output", run, "--config", "seed: 1")
    scored = refused("evaluate", run)
    compared = refused("evaluate", saved_encoder(tmp_path), "--data", "digits", "--compare", run)
    for message in (again, with_settings, scored, compared):
        assert str(run / "config.yaml") in message
        assert ("is a named pipe" if name == "pipe" else CONFIGS[name][1]) in message
    assert os.listdir(run) == ["config.yaml"]


def test_settings_that_are_no_file(tmp_path, refused):
    places = {pipe(tmp_path / "pipe"): "a named pipe", tmp_path: "a folder", "/dev/zero": "a device"}
    for place, kind in places.items():
        for program, first in (("train", []), ("evaluate", ["resnet18"])):
            for flags in (["--config", place], [f"--config={place}"]):
                assert f"Expected a file, but {place} is {kind}" in refused(program, *first, *flags)
    (tmp_path / "outer.yaml").write_text(f"config: {tmp_path / 'pipe'}\n")
    assert "it names a config itself" in refused("train", "--config", tmp_path / "outer.yaml")


def test_flags_that_hold_yaml(refused):
    assert "alias" in refused("train", "--config", BOMB)
    assert "encoder_args" in refused("train", "--encoder_args", BOMB)
    assert "encoder_args" in refused("train", "--encoder_args", "[" * 10_000)
    assert "encoder_args" in refused("reproduce", "losses", "--encoder_args", BOMB)
    assert "epochs" in refused("train", "--epochs", "9" * 6000)
    assert "Expected settings that all trainings can share" in refused("reproduce", "losses", "--config", "/dev/zero")


def test_good_settings_are_read(tmp_path, capfd):
    for content in ("\ufeffseed: 3\n", "seed: 3\r\n", '{"seed": 3}', "<<: {seed: 3}\n", "# one\nseed: 3\n"):
        (tmp_path / "settings").write_bytes(content.encode())
        with pytest.raises(SystemExit) as ended:
            train.main(["--config", str(tmp_path / "settings"), "--print_config"])
        assert (ended.value.code, "seed: 3" in capfd.readouterr().out) == (0, True)


# data


def test_data_that_are_no_folder(tmp_path, refused):
    (tmp_path / "a.parquet").write_bytes(b"")
    places = {pipe(tmp_path / "pipe"): "a named pipe", tmp_path / "a.parquet": "a file", "/dev/zero": "a device"}
    for place, kind in places.items():
        for form in ("hf", "imagefolder"):
            assert f"{place} is {kind}" in refused("train", "--data", f"{form}:{place}")
    encoder = saved_encoder(tmp_path)
    assert "is a named pipe" in refused("evaluate", encoder, "--data", f"hf:{tmp_path / 'pipe'}")
    assert "is a named pipe" in refused("evaluate", encoder, "--data=digits", f"--transfer=hf:{tmp_path / 'pipe'}")


def test_folders_without_data_files(tmp_path, monkeypatch, refused):
    home, other = tmp_path / "home", tmp_path / "other"
    for folder in (home, other):
        (folder / ".cache").mkdir(parents=True)
        (folder / "notes").mkdir()
        (folder / ".cache/x.parquet").touch()
        (folder / "a.o").touch()
        (folder / "notes/back").symlink_to(folder)
    (home / "notes/x.parquet").touch()  # in a home, other folders are not data
    monkeypatch.setenv("HOME", str(home))
    for place in ("~", home, tmp_path):
        message = refused("train", "--data", f"hf:{place}")
        assert "to hold data files (.parquet, " in message
        assert "it holds none itself, and it is a home folder" in message
    assert "but it holds none" in refused("train", "--data", f"hf:{other}")
    monkeypatch.setattr("pml_supcon.data.sources._MOST_FOREIGN", 100)
    for index in range(101):
        (other / f"{index}.o").touch()
    assert "entries are none" in refused("train", "--data", f"hf:{other}")
    pipe(other / "train/x.parquet")
    monkeypatch.setattr("pml_supcon.data.sources._MOST_FOREIGN", 10_000)
    assert f"{other / 'train/x.parquet'} is a named pipe" in refused("train", "--data", f"hf:{other}")


@pytest.mark.parametrize("size", [(101, 1), (1, 101), (1, 10**6), (10**6, 2)])
def test_extreme_shapes_of_images(size, tmp_path, refused):
    write_classes(tmp_path / "images", red=6, green=6)
    Image.new("RGB", size).save(tmp_path / "images/red/odd.png")
    message = refused("train", "--data", f"imagefolder:{tmp_path / 'images'}", "--batch_size", 4)
    assert f"at most 100 times as long as wide, but got {size[0]} x {size[1]} pixels" in message
    assert "red/odd.png" in message


@pytest.mark.parametrize("size", [(1, 1), (100, 1), (1, 100)])
def test_small_and_narrow_images_are_read(size, tmp_path):
    write_classes(tmp_path, red=6, green=6)
    Image.new("RGB", size).save(tmp_path / "red/odd.png")
    data = load_data(f"imagefolder:{tmp_path}")
    assert len(data.train) + len(data.test) == 13


def test_images_that_fill_the_memory(tmp_path, monkeypatch, refused):
    write_classes(tmp_path / "images", red=6, green=6)
    Image.new("L", (200, 200)).save(tmp_path / "images/red/odd.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    message = refused("train", "--data", f"imagefolder:{tmp_path / 'images'}", "--batch_size", 4)
    assert "red/odd.png is not a readable image: Image size (40000 pixels) exceeds limit" in message


# encoders


@pytest.mark.parametrize(
    ("encoder", "options", "reason"),
    [(encoder, options, reason) for encoder, table in ENCODERS.items() for options, reason in table.items()],
)
def test_arguments_of_encoders(encoder, options, reason, refused):
    message = refused("train", "--encoder", encoder, "--encoder_args", options, "--max_train", 40, "--max_test", 20)
    assert f"With --encoder_args {json.dumps(json.loads(options))}: " in message
    assert reason in message


def test_encoders_of_all_trainings(tmp_path, refused):
    weights = tmp_path / "weights.pt"
    write_foreign(weights, "html")
    folders = ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    message = refused("reproduce", "losses", *folders, "--encoder_args", '{"features_only": true}')
    assert 'With --encoder_args {"features_only": true}: ' in message
    assert f"Expected {weights} to hold weights" in refused(
        "reproduce", "losses", *folders, "--encoder_weights", weights
    )
    assert "is a named pipe" in refused("reproduce", "losses", *folders, f"--data=hf:{pipe(tmp_path / 'pipe')}")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != weights]


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("sgd", '{"momentum": "high"}'),
        ("sgd", '{"lr": 3}'),
        ("sgd", '{"no_such_argument": 3}'),
        ("adamw", '{"betas": []}'),
        ("adamw", '{"betas": [0.9]}'),
        ("adamw", '{"eps": null}'),
        ("lars", '{"trust_coeff": "x"}'),
    ],
)
def test_arguments_of_optimizers(optimizer, options, refused):
    message = refused("train", "--optimizer", optimizer, "--optimizer_args", options)
    assert f"{optimizer} " in message
    assert f" with {json.loads(options)}: " in message
    stage2 = refused("train", "--stage2_optimizer", optimizer, "--stage2_optimizer_args", options)
    assert f" with {json.loads(options)}: " in stage2


def test_arguments_that_are_no_mapping(refused):
    for value in ("3", "[1]", "channels", "{"):
        assert 'Parser key "encoder_args"' in refused("train", "--encoder_args", value)
        assert 'Parser key "encoder_args"' in refused("reproduce", "losses", "--encoder_args", value)


def saved_encoder(folder):
    return save_encoder(create_encoder("test_resnet", in_chans=1, image_size=8), folder / "encoder")


class Harmless:
    """An object that no weights file may hold."""


def write_foreign(path, kind):
    contents = {"text": b"hello", "html": b"<!DOCTYPE html>\n<html>404\n</html>\n", "empty": b"", "zip": b"PK\x03\x04"}
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Counter({"a": 1})))
    elif kind == "object":
        torch.save({"model": Harmless()}, path)
    elif kind == "pipe":
        pipe(path)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "numbers":
        torch.save({"epoch": 3}, path)
    elif path.suffix == ".safetensors":
        save_file({"other.weight": torch.zeros(3)}, path)
    else:
        torch.save({"other.weight": torch.zeros(3)}, path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "kind", ["text", "html", "empty", "zip", "pickle", "object", "tensor", "numbers", "pipe", "foreign"]
)
def test_weights_that_are_none(kind, suffix, tmp_path, refused):
    file = tmp_path / f"weights{suffix}"
    write_foreign(file, kind)
    message = refused("train", "--encoder=test_resnet", "--encoder_weights", file, "--max_train=40", "--max_test=20")
    assert str(file) in message
    expected = {"pipe": "is a named pipe", "foreign": "do not fit test_resnet"}
    assert expected.get(kind, "to hold weights (.safetensors, or a state dict in .pt or .pth)") in message


def test_pipes_for_the_encoder(tmp_path, refused):
    encoder = saved_encoder(tmp_path)
    assert "is a named pipe" in refused("evaluate", pipe(tmp_path / "pipe"))
    assert "is a named pipe" in refused("evaluate", encoder, "--data=digits", "--compare", tmp_path / "pipe")
    for name in ("config.json", "model.safetensors"):
        copy = saved_encoder(tmp_path / name)
        (copy / name).unlink()
        pipe(copy / name)
        assert name in refused("evaluate", copy, "--data=digits")
    run = tmp_path / "run"
    saved_encoder(run)
    (run / "config.yaml").write_text("data: digits\nimage_size: 8\nmax_train: null\nmax_test: null\nmethod: joint\n")
    write_record(run, {})
    for name in ("classifier.safetensors", "head.safetensors"):
        pipe(run / name)
        assert name in refused("evaluate", run)
        (run / name).unlink()


@pytest.mark.parametrize("kind", ["text", "html", "empty"])
def test_a_classifier_that_is_none(kind, tmp_path, refused):
    saved_encoder(tmp_path)
    (tmp_path / "config.yaml").write_text(
        "data: digits\nimage_size: 8\nmax_train: null\nmax_test: null\nmethod: joint\n"
    )
    write_foreign(tmp_path / "classifier.safetensors", kind)
    write_record(tmp_path, {})  # a finished run
    assert "classifier.safetensors to hold a classifier" in refused("evaluate", tmp_path)


# other files


@pytest.mark.parametrize("kind", ["pipe", "file", "Latin-1"])
def test_folders_that_are_none(kind, tmp_path, refused):
    encoder, place = saved_encoder(tmp_path), tmp_path / kind
    message = f"to be a folder, but {place} is a {'named pipe' if kind == 'pipe' else 'file'}"
    if kind == "pipe":
        pipe(place)
    elif kind == "file":
        place.write_text("")
    else:
        place = tmp_path / os.fsdecode(b"caf\xe9")  # safetensors writes such a file, and cannot open it
        message = f"to be a path in UTF-8, but got {os.fsencode(place)!r}"
    for flag in ("--cache", "--output"):
        assert f"Expected {flag} {message}" in refused("evaluate", encoder, "--data=digits", flag, place)
    assert f"Expected --output {message}" in refused("train", "--output", place)
    for flag in ("--runs", "--results"):
        assert f"Expected {flag} {message}" in refused("reproduce", "losses", flag, place)


def test_a_pipe_in_the_cache_is_computed_again(tmp_path, caplog):
    cache, key = FeatureCache(tmp_path), {"a": 1}
    pipe(cache.file_of(key))
    assert cache.read(key) is None
    assert "is a named pipe): its features are computed again" in caplog.text
    cache.write(key, torch.zeros(2, 3))
    assert cache.read(key).shape == (2, 3)


# weights that are not there


@pytest.fixture
def empty_caches(tmp_path, monkeypatch):
    """Caches without weights, and no network: a request for weights fails at once."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))

    def unreachable(*arguments, **options):
        raise OSError("no connection")

    monkeypatch.setattr(timm, "create_model", unreachable)


def test_a_download_is_announced_first(tmp_path, monkeypatch, empty_caches, capsys):
    name = "vit_base_patch16_clip_224"
    encoder = tmp_path / "encoder"
    for program, arguments in (
        ("evaluate", [name, "--data", "digits"]),
        ("train", ["--encoder", name, "--pretrained", "--output", str(encoder), "--image_size", "224"]),
    ):
        with pytest.raises(SystemExit) as ended:
            PROGRAMS[program](arguments)
        printed = capsys.readouterr()
        assert ended.value.code == 1
        assert printed.out.splitlines()[0] == f"no local weights of {name}: timm downloads them"
        assert printed.err.splitlines() == [
            f"{program}.py: error: The pretrained weights of {name} could not be fetched (`checkpoint` takes a local "
            "file): no connection"
        ]


def test_weights_in_a_cache_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    on_hub, by_url = "vit_base_patch16_clip_224", "test_by_url"
    known = {}
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda place, file: known.get(file))
    assert not pretrained.has_local_weights(on_hub)
    known["model.safetensors"] = object()  # the cache knows that the hub has no such file
    assert not pretrained.has_local_weights(on_hub)
    known["pytorch_model.bin"] = "/cache/pytorch_model.bin"
    assert pretrained.has_local_weights(on_hub)
    config = timm.models.PretrainedCfg(url="https://example.com/weights-1234.pth")
    monkeypatch.setattr(pretrained, "get_pretrained_cfg", lambda name: config)
    assert not pretrained.has_local_weights(by_url)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/weights-1234.pth").touch()
    assert pretrained.has_local_weights(by_url)
