"""Saved projection heads come back exactly, and damaged files are refused before anything is built."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pml_supcon.models import ProjectionHead, head_storage, load_head, save_head

LAYOUTS = {
    "plain": {},
    "linear": {"num_layers": 1},
    "linear_with_batch_norm": {"num_layers": 1, "batch_norm": True},  # which has no place in it
    "deep": {"num_layers": 4, "hidden_features": 5},
    "deep_batch_norm": {"num_layers": 3, "hidden_features": 7, "batch_norm": True},
}


def make(layout="deep_batch_norm"):
    torch.manual_seed(0)
    head = ProjectionHead(6, 4, **LAYOUTS[layout])
    head(torch.randn(20, 6))  # running statistics away from their start, so that they count
    return head


def assert_same(found, expected):
    assert type(found) is ProjectionHead
    assert [repr(layer) for layer in found] == [repr(layer) for layer in expected]
    own, wanted = found.state_dict(), expected.state_dict()
    assert own.keys() == wanted.keys()
    for name, value in wanted.items():
        assert own[name].dtype == value.dtype, name
        assert torch.equal(own[name], value), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip_is_exact(tmp_path, layout):
    head = make(layout)
    file = tmp_path / "a/b/head.safetensors"
    assert save_head(head, str(file)) == file
    state = torch.random.get_rng_state()
    again = load_head(str(file))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_same(again, head)
    assert again.training
    assert all(weight.requires_grad for weight in again.parameters())
    rows = torch.randn(5, 6)
    assert torch.equal(again.eval()(rows), head.eval()(rows))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_are_kept(tmp_path, dtype):
    head = make().to(dtype)
    assert_same(load_head(save_head(head, tmp_path / "head.safetensors")), head)
    head[1].float()  # a batch norm that stays in float32
    assert_same(load_head(save_head(head, tmp_path / "head.safetensors")), head)


def test_a_synchronised_batch_norm_is_saved_as_a_plain_one(tmp_path):
    head = make()
    changed = nn.SyncBatchNorm.convert_sync_batchnorm(make())
    assert isinstance(changed[1], nn.SyncBatchNorm)
    assert_same(load_head(save_head(changed, tmp_path / "head.safetensors")), head)


def test_a_loaded_head_does_not_hang_on_its_file(tmp_path):
    head = make()
    file = save_head(head, tmp_path / "head.safetensors")
    again = load_head(file)
    file.write_bytes(bytes(file.stat().st_size))
    assert_same(again, head)


def test_an_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    head = make()
    file = save_head(head, tmp_path / "head.safetensors")

    def half(weights, path, **options):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(head_storage, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        save_head(make("plain"), file)
    assert list(tmp_path.iterdir()) == [file]
    assert_same(load_head(file), head)


@pytest.mark.parametrize("name", ["head", "head.safetensors.bak"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"`file` to have the suffix \.safetensors, but got .*head"):
        save_head(make(), tmp_path / "folder" / name)
    assert not list(tmp_path.iterdir())
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"`file` to have the suffix \.safetensors"):
        load_head(tmp_path / name)


def test_other_modules_are_refused(tmp_path):
    with pytest.raises(TypeError, match="`head` to be a ProjectionHead, but got Linear"):
        save_head(nn.Linear(3, 2), tmp_path / "head.safetensors")


def write_damaged(file, damage):
    """Save a head, then write its file again with other metadata or tensors."""
    save_head(make(), file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    weights, layout = load_file(file), json.loads(metadata["projection_head"])
    changes = {
        "a list": [1, 2],
        "no layers": {name: value for name, value in layout.items() if name != "num_layers"},
        "unknown option": layout | {"dropout": 0.5},
        "text as width": layout | {"in_features": "6"},
        "text as layers": layout | {"num_layers": "3"},
        "no width": layout | {"hidden_features": 0},
        "other width": layout | {"in_features": 8},
        "huge width": layout | {"in_features": 10**11, "hidden_features": 10**6},
        "huge depth": layout | {"num_layers": 10**12},
        "no batch norm": layout | {"batch_norm": False},
    }
    if damage in changes:
        metadata["projection_head"] = json.dumps(changes[damage])
    elif damage == "no json":
        metadata["projection_head"] = "{"
    elif damage == "no metadata":
        metadata = None
    elif damage == "missing tensor":
        del weights["0.weight"]
    elif damage == "another tensor":
        weights["9.weight"] = torch.zeros(3)
    elif damage == "integers":
        weights["1.running_mean"] = weights["1.running_mean"].long()
    elif damage == "no integers":
        weights["1.num_batches_tracked"] = weights["1.num_batches_tracked"].float()
    save_file(weights, file, metadata=metadata)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("a list", r"its metadata is not a mapping but \[1, 2\]"),
        ("no json", "Expecting property name"),
        ("no metadata", "projection_head"),
        ("no layers", "num_layers"),
        ("unknown option", "dropout"),
        ("text as width", "`in_features` to be an integer, but got '6'"),
        ("text as layers", "str"),
        ("no width", "`hidden_features` to be at least 1, but got 0"),
        ("other width", r"'0.weight': \[7, 6\].* but its metadata says .*'0.weight': \[7, 8\]"),
        ("huge width", r"but its metadata says .*'0.weight': \[1000000, 100000000000\]"),
        ("huge depth", "says 1000000000000 layers, but it has 14 tensors"),
        ("no batch norm", "but its metadata says"),
        ("missing tensor", "its tensors are"),
        ("another tensor", "'9.weight'"),
        ("integers", "1.running_mean is torch.int64"),
        ("no integers", "1.num_batches_tracked is torch.float32"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, damage, why):
    file = tmp_path / "head.safetensors"
    write_damaged(file, damage)
    with pytest.raises(ValueError, match=f"head.safetensors to be a file of `save_head`, but it is not: .*{why}"):
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
