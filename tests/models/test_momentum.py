"""The momentum encoder: its weights beside the recursion written out, its state, wrappers, bad input."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pml_supcon.models import MomentumEncoder


def new_encoder():
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def change(encoder):
    """Change the parameters, as an optimiser does, and the running statistics."""
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    encoder(torch.randn(8, 3))


def assert_equal(ours, theirs):
    torch.testing.assert_close(list(ours), list(theirs), rtol=0, atol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.999])
def test_weights_follow_the_recursion_from_the_first_update_on(momentum):
    online = new_encoder()
    slow = MomentumEncoder(online, 0.9)
    slow.momentum = momentum  # as a schedule does
    expected = [parameter.detach().clone().double() for parameter in online.parameters()]
    for _ in range(4):
        change(online)
        slow.update_parameters(online)
        expected = [momentum * w + (1 - momentum) * now for w, now in zip(expected, online.parameters(), strict=True)]
        assert not any(parameter.requires_grad for parameter in slow.parameters())
        torch.testing.assert_close([w.double() for w in slow.parameters()], expected, rtol=1e-6, atol=1e-6)
        assert_equal(slow.buffers(), online.buffers())
        assert not {id(buffer) for buffer in slow.buffers()} & {id(buffer) for buffer in online.buffers()}


def test_starts_as_a_copy_and_gives_no_gradient():
    online = new_encoder().eval()
    slow = MomentumEncoder(online)
    x = torch.randn(4, 3, requires_grad=True)
    assert torch.equal(slow(x), online(x))
    assert not slow(x).requires_grad
    change(online)
    assert not torch.equal(slow(x), online(x))
    online.train()
    assert not slow.encoder.training  # the modes are independent
    assert all(parameter.requires_grad for parameter in online.parameters())


def test_state_and_copies():
    online = new_encoder()
    slow = MomentumEncoder(online, 0.9)
    change(online)
    slow.update_parameters(online)
    loaded = MomentumEncoder(new_encoder(), 0.9)
    loaded.load_state_dict(slow.state_dict())
    assert set(slow.state_dict()) == {f"encoder.{name}" for name in online.state_dict()}
    twins = [loaded, copy.deepcopy(slow), pickle.loads(pickle.dumps(slow))]
    change(online)
    for twin in (slow, *twins):
        twin.update_parameters(online)
    x = torch.randn(4, 3)
    assert all(torch.equal(twin(x), slow(x)) for twin in twins)


def test_unwraps_data_parallel(tmp_path):
    online = new_encoder()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(online)
        plain, slow = MomentumEncoder(online, 0.5), MomentumEncoder(wrapped, 0.5)
        assert type(slow.encoder) is nn.Sequential
        change(online)
        plain.update_parameters(online)
        slow.update_parameters(wrapped)
    finally:
        dist.destroy_process_group()
    assert_equal(slow.parameters(), plain.parameters())


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"`encoder` to be a torch\.nn\.Module, but got str"):
        MomentumEncoder("resnet18")
    with pytest.raises(ValueError, match=r"`momentum` to be in \[0, 1\), but got -0.1"):
        MomentumEncoder(nn.Linear(2, 2), -0.1)


def test_online_encoders_that_do_not_fit():
    slow = MomentumEncoder(nn.Linear(2, 2))
    before = slow.encoder.weight.clone()
    more_buffers = nn.Linear(2, 2)
    more_buffers.add_module("norm", nn.BatchNorm1d(2, affine=False))
    for online, message in (
        (nn.Linear(3, 2), "parameters of the copied one, 2 tensors, but got 2 of other shapes"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "2 tensors, but got 4"),
        (more_buffers, "buffers of the copied one, 0 tensors, but got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            slow.update_parameters(online)
    assert torch.equal(slow.encoder.weight, before)
