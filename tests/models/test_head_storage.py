"""Saved projection heads are loaded exactly; damaged files raise an error."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pml_supcon import _files
from pml_supcon.models import PredictionHead, ProjectionHead, load_head, save_head

LAYOUTS = {
    "plain": {},
    "linear": {"num_layers": 1, "batch_norm": True},  # one layer has no batch norm
    "deep": {"num_layers": 3, "hidden_features": 7, "batch_norm": True},
}


def make(layout="deep"):
    torch.manual_seed(0)
    head = ProjectionHead(6, 4, **LAYOUTS[layout])
    head(torch.randn(20, 6))  # moves the running statistics from their initial values
    return head


def assert_same(found, expected):
    assert type(found) is ProjectionHead
    assert [repr(layer) for layer in found] == [repr(layer) for layer in expected]
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)  # names and dtypes too


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip_is_exact(tmp_path, layout):
    head = make(layout)
    file = tmp_path / "a/b/head.safetensors"
    assert save_head(head, str(file)) == file
    state = torch.random.get_rng_state()
    loaded = load_head(str(file))
    assert torch.equal(torch.random.get_rng_state(), state)
    file.write_bytes(bytes(file.stat().st_size))  # the loaded weights are copies, not views of the file
    assert_same(loaded, head)
    assert loaded.training
    assert all(weight.requires_grad for weight in loaded.parameters())


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_prediction_head_keeps_its_class(tmp_path, batch_norm):
    head = PredictionHead(6, hidden_features=9, batch_norm=batch_norm)
    found = load_head(save_head(head, tmp_path / "predictor.safetensors"))
    assert type(found) is PredictionHead
    assert [repr(layer) for layer in found] == [repr(layer) for layer in head]
    torch.testing.assert_close(found.state_dict(), head.state_dict(), rtol=0, atol=0)


def test_a_projection_head_is_no_prediction_head(tmp_path):
    file = save_head(make("plain"), tmp_path / "head.safetensors")
    with safe_open(file, "pt") as opened:
        layout = opened.metadata()["projection_head"]
    save_file(load_file(file), file, metadata={"prediction_head": layout})
    with pytest.raises(ValueError, match=r"(?s)to be a file of `save_head`, but it is not: .*size mismatch"):
        load_head(file)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_are_kept(tmp_path, dtype):
    head = make().to(dtype)
    head[1].float()  # a batch norm that stays in float32
    assert_same(load_head(save_head(head, tmp_path / "head.safetensors")), head)


def test_a_synchronised_batch_norm_is_saved_as_a_plain_one(tmp_path):
    changed = nn.SyncBatchNorm.convert_sync_batchnorm(make())
    assert isinstance(changed[1], nn.SyncBatchNorm)
    assert_same(load_head(save_head(changed, tmp_path / "head.safetensors")), make())


def test_an_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    file = save_head(make(), tmp_path / "head.safetensors")

    def half(weights, path, **options):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(_files, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        save_head(make("plain"), file)
    assert list(tmp_path.iterdir()) == [file]
    assert_same(load_head(file), make())


def test_other_suffixes_and_modules_are_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"`file` to have the suffix \.safetensors, but got .*head"):
        save_head(make(), tmp_path / "folder/head.safetensors.bak")
    with pytest.raises(TypeError, match="`head` to be a ProjectionHead, but got Linear"):
        save_head(nn.Linear(3, 2), tmp_path / "head.safetensors")
    assert not list(tmp_path.iterdir())
    (tmp_path / "head").write_bytes(b"")
    with pytest.raises(ValueError, match=r"`file` to have the suffix \.safetensors"):
        load_head(tmp_path / "head")


WIDTH = r"size mismatch for 0\.weight"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "projection_head"),
        ("{", "Expecting property name"),
        ("[1, 2]", r"its metadata is not a mapping but \[1, 2\]"),
        ('{"in_features": 6, "out_features": 4}', "num_layers"),
        ({"dropout": 0.5}, "dropout"),
        ({"in_features": "6"}, "`in_features` to be an integer, but got '6'"),
        ({"num_layers": "3"}, "str"),
        ({"hidden_features": 0}, "`hidden_features` to be at least 1, but got 0"),
        ({"in_features": 10**11, "hidden_features": 10**6}, WIDTH),  # too large for any memory
        ({"num_layers": 10**12}, "says 1000000000000 layers, but it has 14 tensors"),
        ({"batch_norm": False}, "Unexpected key"),
    ],
)
def test_damaged_metadata(tmp_path, metadata, message):
    file = save_head(make(), tmp_path / "head.safetensors")
    if isinstance(metadata, dict):
        with safe_open(file, "pt") as opened:
            metadata = json.dumps(json.loads(opened.metadata()["projection_head"]) | metadata)
    save_file(load_file(file), file, metadata=metadata and {"projection_head": metadata})
    with pytest.raises(
        ValueError, match=rf"(?s)head.safetensors to be a file of `save_head`, but it is not: .*{message}"
    ):
        load_head(file)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("0.weight", lambda weight: weight[:, :5].clone(), WIDTH),
        ("9.weight", lambda _: torch.zeros(3), 'Unexpected key.*"9.weight"'),
        ("0.weight", None, 'Missing key.*"0.weight"'),
        ("1.running_mean", torch.Tensor.long, "1.running_mean is torch.int64"),
        ("1.num_batches_tracked", torch.Tensor.float, "1.num_batches_tracked is torch.float32"),
    ],
)
def test_damaged_tensors(tmp_path, name, change, message):
    file = save_head(make(), tmp_path / "head.safetensors")
    with safe_open(file, "pt") as opened:
        metadata, weights = opened.metadata(), load_file(file)
    value = weights.pop(name, None)
    save_file(weights | ({name: change(value)} if change else {}), file, metadata=metadata)
    with pytest.raises(ValueError, match=f"(?s)to be a file of `save_head`, but it is not: .*{message}"):
        load_head(file)


def test_files_that_are_no_safetensors(tmp_path):
    file = save_head(make(), tmp_path / "head.safetensors")
    whole = file.read_bytes()
    for content in (whole[:-20], whole[:40], b"", b"cos\nsystem\n(S'touch hacked'\ntR."):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="to be a file of `save_head`"):
            load_head(file)
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere"):
        load_head(tmp_path / "nowhere.safetensors")
