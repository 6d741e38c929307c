"""Saved encoders are loaded exactly, by timm alone if the stem is plain."""

import copy
import os
import subprocess
import sys

import pytest
import timm
import torch
from safetensors import safe_open

from pml_supcon import _files
from pml_supcon.models import create_encoder, load_encoder, save_encoder

CASES = {
    "plain": {"name": "test_resnet"},
    "small": {"name": "test_resnet", "image_size": 32},
    "resized": {"name": "resnet18", "image_size": 16, "in_chans": 1},
    "two_channels": {"name": "test_efficientnet", "in_chans": 2},
    "vit": {"name": "test_vit", "image_size": 32, "patch_size": 8, "in_chans": 4, "drop_path_rate": 0.1},
}


def make(case):
    options = CASES[case]
    encoder = create_encoder(**options)
    for module in encoder.modules():  # move the running statistics from their initial values
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    size = options.get("image_size", 32)
    return encoder, torch.randn(2, options.get("in_chans", 3), size, size)


def outputs(encoder, x):
    with torch.no_grad():
        return encoder.eval()(x)


@pytest.mark.parametrize("case", CASES)
def test_round_trip_is_exact(tmp_path, case):
    encoder, x = make(case)
    save_encoder(encoder, tmp_path / "a/b")
    save_encoder(load_encoder(tmp_path / "a/b"), tmp_path / "again")
    save_encoder(copy.deepcopy(encoder), tmp_path / "copy")
    for folder in ("a/b", "again", "copy"):
        assert (tmp_path / folder / "config.json").read_text() == (tmp_path / "a/b/config.json").read_text()
        by_timm = timm.create_model(f"local-dir:{tmp_path / folder}", pretrained=True)
        for loaded in (load_encoder(tmp_path / folder), by_timm):
            assert loaded.training
            assert repr(loaded) == repr(encoder)  # the layers, with their rates of stochastic depth
            assert torch.equal(outputs(loaded, x), outputs(encoder, x))


def test_a_small_stem_accepts_a_classifier_and_other_channels(tmp_path):
    encoder, _ = make("small")
    save_encoder(encoder, tmp_path)
    classifier = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=5)
    assert outputs(classifier, torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    own, given = classifier.state_dict(), encoder.state_dict()
    assert all(torch.equal(own[key], given[key]) for key in given)
    grey = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1)
    torch.testing.assert_close(grey.conv1[0].weight, encoder.conv1[0].weight.sum(1, keepdim=True))


def test_small_stem_with_the_weights_of_its_base(tmp_path):
    model = timm.create_model("resnet18")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    source = {"file": str(tmp_path / "w.pth")}
    with pytest.warns(UserWarning, match="first convolution of resnet18 became 3 x 3"):
        small = timm.create_model("small_stem", base="resnet18", pretrained=True, pretrained_cfg_overlay=source)
    assert torch.equal(small.layer4[1].conv2.weight, model.layer4[1].conv2.weight)
    assert small.conv1.kernel_size == (3, 3)
    assert small.default_cfg["architecture"] == "small_stem"


def test_another_process_needs_the_package_only_for_small_stems(tmp_path):
    for case in ("plain", "small"):
        save_encoder(make(case)[0], tmp_path / case)
    program = """
import sys, timm
def load(case):
    timm.create_model("local-dir:" + case, pretrained=True)
load("plain")
try:
    load("small")
except RuntimeError as error:
    assert "Unknown model (small_stem)" in str(error), error
else:
    raise SystemExit("the small stem was loaded without the package")
assert not any(name.startswith("pml_supcon") for name in sys.modules)
import pml_supcon.models
load("small")
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_the_config_describes_the_images(tmp_path):
    encoder, _ = make("resized")
    save_encoder(encoder, tmp_path, mean=[0.3], std=[0.2])
    described = timm.data.resolve_model_data_config(load_encoder(tmp_path))
    assert described["input_size"] == (1, 16, 16)
    assert (list(described["mean"]), list(described["std"]), described["crop_pct"]) == ([0.3], [0.2], 1.0)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert not [key for key in file.keys() if key.startswith("fc")]  # noqa: SIM118 - no iterator of its own


def test_saving_replaces_and_an_interrupted_save_keeps_the_old_files(tmp_path, monkeypatch):
    encoder, x = make("small")
    save_encoder(make("small")[0], tmp_path)
    save_encoder(encoder, tmp_path)

    def half(weights, path, **options):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(_files, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        save_encoder(make("small")[0], tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert torch.equal(outputs(load_encoder(tmp_path), x), outputs(encoder, x))


def test_errors_of_saving(tmp_path):
    encoder, _ = make("small")
    plain = timm.create_model("test_resnet", num_classes=0)
    for other in (plain, torch.nn.DataParallel(encoder), torch.compile(encoder)):
        with pytest.raises(TypeError, match=r"`create_encoder` or `load_encoder`, without a wrapper"):
            save_encoder(other, tmp_path)
    with pytest.raises(ValueError, match="both `mean` and `std` or neither"):
        save_encoder(encoder, tmp_path, mean=[0.5] * 3)
    with pytest.raises(ValueError, match=r"3 entries \(`in_chans`\), but got 1 and 1"):
        save_encoder(encoder, tmp_path, mean=[0.5], std=[0.5])
    assert not os.listdir(tmp_path)


def test_errors_of_loading(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere"):
        load_encoder(tmp_path / "nowhere")
    save_encoder(make("small")[0], tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"to hold config\.json, as `save_encoder` writes it"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", content) for content in (b"", b"[]", b"{}", b"{", b"\xff\xfe", b'{"architecture": "resnet10t"}')]
    + [("model.safetensors", content) for content in (b"", b"half")],
)
def test_a_damaged_file_is_one_error_that_names_the_folder(tmp_path, name, content):
    save_encoder(make("small")[0], tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"Expected {tmp_path} to be a folder of `save_encoder`, but it is not"):
        load_encoder(tmp_path)
