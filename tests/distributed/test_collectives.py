"""Collectives take tensors on the device of the embeddings, or copy them to one that the group has."""

import warnings

import pytest
import torch
from helpers.pretend_gpu import GPU, WaitsForDeviceError, need_fake_tensors_on_a_gpu, pretend_gpu
from helpers.process_groups import run_processes
from torch import distributed as dist

from pml_supcon.distributed import collectives

CPU = torch.device("cpu")
GROUP = object()  # stands in for a process group


@pytest.mark.parametrize(
    ("backends", "device", "expected"),
    [
        ("cuda:nccl", GPU, GPU),
        ("cuda:nccl", CPU, torch.device("cuda")),
        ("cpu:gloo,cuda:nccl", GPU, GPU),
        ("cpu:gloo,cuda:nccl", CPU, CPU),
        ("cpu:gloo,cuda:gloo", GPU, CPU),
        ("cpu:gloo,cuda:gloo", CPU, CPU),
        ("cpu:mpi,cuda:mpi", GPU, CPU),
    ],
)
def test_the_device_of_a_collective(monkeypatch, backends, device, expected):
    monkeypatch.setattr(dist, "get_backend_config", lambda group: backends)
    assert collectives.device_of(GROUP, device) == expected


@pytest.fixture
def twins(monkeypatch):
    """Stand in for a gloo group of two processes with equal tensors, which takes no tensor on a GPU."""

    def on_host(*tensors):
        assert {tensor.device.type for tensor in tensors} == {"cpu"}

    def gather(output, own, group):
        on_host(output, own)
        output.copy_(torch.cat([own, own]) if own.ndim else torch.stack([own, own]))

    def scatter(output, own, group):
        on_host(output, own)
        output.copy_(2 * own.chunk(2)[0])

    def reduce(own, op, group):
        on_host(own)
        own.mul_(2)

    monkeypatch.setattr(dist, "get_backend_config", lambda group: "cpu:gloo,cuda:gloo")
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    monkeypatch.setattr(dist, "all_reduce", reduce)
    monkeypatch.setattr(collectives, "_all_gather", gather)
    monkeypatch.setattr(collectives, "_reduce_scatter", scatter)
    monkeypatch.setattr(collectives, "collective_errors", lambda group, device: torch.no_grad())


def test_gloo_gets_tensors_of_a_gpu_through_the_host(twins, monkeypatch):
    need_fake_tensors_on_a_gpu()
    with torch._subclasses.fake_tensor.FakeTensorMode():
        x = torch.empty(3, 5, device=GPU)
        results = [
            collectives.all_gather(x, GROUP),
            collectives.all_gather_rows(x, [3, 3], GROUP),
            collectives.all_gather_rows(x, [3, 1], GROUP),
            collectives.reduce_scatter_rows(torch.empty(4, 5, device=GPU), [3, 1], GROUP),
            collectives.all_reduce(x, GROUP),
        ]
    assert results[-1] is x  # in place
    assert [tuple(result.shape) for result in results] == [(2, 3, 5), (6, 5), (4, 5), (3, 5), (3, 5)]
    assert {result.device for result in results} == {GPU}


def test_tensors_on_the_host_are_not_copied(twins):
    x = torch.ones(3, 5)
    assert collectives.all_reduce(x, GROUP) is x
    assert torch.equal(x, torch.full((3, 5), 2.0))
    assert torch.equal(collectives.all_gather_rows(x, [3, 3], GROUP), torch.cat([x, x]))


@pytest.mark.parametrize("backends", ["cpu:gloo,cuda:nccl", "cpu:gloo,cuda:gloo"])
def test_sizes_travel_over_the_host_where_the_group_can(twins, monkeypatch, backends):
    """The fixture refuses tensors on a GPU; reading one would raise."""
    monkeypatch.setattr(dist, "get_backend_config", lambda group: backends)
    with pretend_gpu(monkeypatch):
        x = torch.empty(3, 5, device=GPU)
        with pytest.raises(WaitsForDeviceError):
            int(x.sum())
        found = collectives.agree({"samples": len(x)}, {"dtype": "float32"}, None, GROUP, x.device)
    assert found == {"samples": [3, 3]}


def test_else_they_travel_in_a_stream_of_their_own(twins, monkeypatch):
    """The embeddings' device has the stream, not the current device."""
    entered = []

    class Context:
        def __init__(self, *names):
            self.names = names

        def __enter__(self):
            entered.append(self.names)

        def __exit__(self, *_):
            entered.append("left")

    monkeypatch.setattr(dist, "get_backend_config", lambda group: "cuda:nccl")
    monkeypatch.setattr(collectives, "current", lambda device: Context("device", device))
    monkeypatch.setattr(collectives, "stream_of", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: Context(stream))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: GPU.index)
    gathered = []

    def all_gather(x, group):
        gathered.append((x.device, entered.copy()))
        return torch.tensor([[1, 2], [3, 4]])

    monkeypatch.setattr(collectives, "all_gather", all_gather)
    with pretend_gpu(monkeypatch):
        assert collectives.exchange([1, 2], GROUP, GPU) == [[1, 2], [3, 4]]
    assert gathered == [(GPU, [("device", GPU), ("stream of 1",)])]
    assert entered[2:] == ["left", "left"]


#: Per case: the result of a miner, and a part of the error or None.
MINERS = {
    "pairs": ([torch.arange(3), torch.arange(3), torch.arange(5), torch.arange(5)], None),
    "triplets": ([torch.arange(3)] * 3, None),
    "none found": ([torch.tensor([])] * 3, None),
    "two": ([torch.arange(3)] * 2, "ValueError: Expected a miner to return 3 or 4 index tensors, but got 2"),
    "floats": (
        [torch.rand(3)] * 3,
        "TypeError: Expected a miner to return one-dimensional int64 tensors",
    ),
    "nothing": (None, "TypeError"),
}


def mine(rank):
    """Return what each process gets from the miner of the first, and from the other collectives without a warning."""
    group, results = dist.group.WORLD, {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch deprecates collectives by a FutureWarning
        rows = torch.full((3 - rank, 2), float(rank))
        gathered = collectives.all_gather_rows(rows, [3, 2], group)
        results["others"] = [gathered, collectives.reduce_scatter_rows(gathered, [3, 2], group)]
    for name, (mined, _) in MINERS.items():

        def first_only(mined=mined):
            assert dist.get_rank() == 0
            return mined

        try:
            results[name] = collectives.broadcast_from_first(first_only, group, CPU)
        except RuntimeError as error:
            results[name] = str(error)
    return results


def test_mined_tensors_reach_all_processes(tmp_path):
    for rank, result in enumerate(run_processes(mine, 2, tmp_path)):
        gathered = torch.tensor([0.0, 0, 0, 1, 1])[:, None].expand(5, 2)
        torch.testing.assert_close(result["others"], [gathered, 2 * gathered.split([3, 2])[rank]])
        for name, (mined, error) in MINERS.items():
            if error is None:
                torch.testing.assert_close(result[name], [indices.long() for indices in mined], msg=name)
            else:
                assert result[name].startswith(f"rank 0: {error}")
