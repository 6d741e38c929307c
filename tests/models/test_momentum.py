"""The momentum encoder: its weights beside the recursion written out, its state, wrappers, bad input."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pml_supcon.models import ChunkedEncoder, MomentumEncoder


def new_encoder():
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def change(encoder):
    """As a step of an optimiser, and a batch through BatchNorm, do."""
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    encoder(torch.randn(8, 3))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.999])
def test_weights_follow_the_recursion_from_the_first_update_on(momentum):
    online = new_encoder()
    slow = MomentumEncoder(online, momentum)
    expected = [parameter.detach().clone().double() for parameter in online.parameters()]
    for _ in range(4):
        change(online)
        slow.update_parameters(online)
        expected = [momentum * w + (1 - momentum) * now for w, now in zip(expected, online.parameters(), strict=True)]
        for own, right in zip(slow.encoder.parameters(), expected, strict=True):
            torch.testing.assert_close(own.double(), right, rtol=1e-6, atol=1e-6)
            assert not own.requires_grad
        for own, theirs in zip(slow.buffers(), online.buffers(), strict=True):
            assert torch.equal(own, theirs)
            assert own is not theirs
    if momentum == 0:
        assert all(torch.equal(a, b) for a, b in zip(slow.parameters(), online.parameters(), strict=True))


def test_starts_as_a_copy_and_gives_no_gradient():
    online = new_encoder().eval()
    slow = MomentumEncoder(online)
    x = torch.randn(4, 3, requires_grad=True)
    assert torch.equal(slow(x), online(x))
    assert not slow(x).requires_grad
    change(online)
    assert not torch.equal(slow(x), online(x))
    online.train()
    assert not slow.encoder.training  # its mode is its own
    assert all(parameter.requires_grad for parameter in online.parameters())


def test_momentum_may_be_scheduled():
    online = new_encoder()
    slow = MomentumEncoder(online, 0.9)
    change(online)
    slow.momentum = 0.0
    slow.update_parameters(online)
    assert all(torch.equal(a, b) for a, b in zip(slow.parameters(), online.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        slow.momentum = 1.0


def test_state_and_copies():
    online, other = new_encoder(), new_encoder()
    slow = MomentumEncoder(online, 0.9)
    change(online)
    slow.update_parameters(online)
    loaded = MomentumEncoder(other, 0.9)
    loaded.load_state_dict(slow.state_dict())
    assert set(slow.state_dict()) == {f"encoder.{name}" for name in online.state_dict()}
    twins = [loaded, copy.deepcopy(slow), pickle.loads(pickle.dumps(slow))]
    change(online)
    for twin in (slow, *twins):
        twin.update_parameters(online)
    x = torch.randn(4, 3)
    assert all(torch.equal(twin(x), slow(x)) for twin in twins)


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_unwraps_data_parallel():
    online = new_encoder()
    wrapped = DistributedDataParallel(online)
    plain, slow = MomentumEncoder(online, 0.5), MomentumEncoder(wrapped, 0.5)
    assert type(slow.encoder) is nn.Sequential
    change(online)
    plain.update_parameters(online)
    slow.update_parameters(wrapped)
    assert all(torch.equal(a, b) for a, b in zip(slow.parameters(), plain.parameters(), strict=True))


def test_around_chunks():
    online = ChunkedEncoder(nn.Linear(3, 2), chunk_size=2)
    slow = MomentumEncoder(online, 0.5)
    slow.update_parameters(online)
    assert torch.allclose(slow(torch.ones(5, 3)), online(torch.ones(5, 3)))


@pytest.mark.parametrize(("momentum", "error"), [(1.0, ValueError), (-0.1, ValueError), ("0.9", TypeError)])
def test_a_momentum_out_of_range(momentum, error):
    with pytest.raises(error, match=r"`momentum` to be (in \[0, 1\)|a number), but got"):
        MomentumEncoder(nn.Linear(2, 2), momentum)


def test_encoders_that_do_not_fit():
    with pytest.raises(TypeError, match=r"`encoder` to be a torch\.nn\.Module, but got str"):
        MomentumEncoder("resnet18")
    slow = MomentumEncoder(nn.Linear(2, 2))
    before = slow.encoder.weight.clone()
    with pytest.raises(ValueError, match="parameters of the copied one, 2 tensors, but got 2 of other shapes"):
        slow.update_parameters(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="2 tensors, but got 4"):
        slow.update_parameters(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="buffers of the copied one, 0 tensors, but got 3"):
        slow.update_parameters(with_buffers())
    assert torch.equal(slow.encoder.weight, before)


def with_buffers():
    """The parameters of the linear layer, and three buffers."""
    linear = nn.Linear(2, 2)
    linear.add_module("norm", nn.BatchNorm1d(2, affine=False))
    return linear
