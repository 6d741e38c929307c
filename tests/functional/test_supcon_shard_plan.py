"""The shard plan, without processes: all pairs are computed once, and every block sent is received."""

import random
from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from helpers.pretend_gpu import GPU, need_fake_tensors_on_a_gpu
from torch._subclasses.fake_tensor import FakeTensorMode

from pml_supcon.functional.supcon.global_batch import transfers
from pml_supcon.functional.supcon.global_batch.shard_plan import ShardPlan
from pml_supcon.functional.supcon.global_batch.transfers import P2PTransfer, return_gradient, rotate_blocks
from pml_supcon.functional.supcon.options import SupConOptions
from pml_supcon.functional.supcon.problem import build_problem, check_batch
from pml_supcon.functional.supcon.tiled import layout

TRIALS = 6
modes = pytest.mark.parametrize("contrast_mode", ["all", "one"])
sizes_of_group = pytest.mark.parametrize("processes", range(1, 8))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Use small tiles and boxes, and the rank of a process in place of its group."""
    monkeypatch.setattr(layout, "TILE", 5)
    monkeypatch.setattr(layout, "STRIP", 3)
    monkeypatch.setattr(dist, "get_rank", lambda group: group)


def plans(samples, views, contrast_mode, labels):
    """Return the plan of each process."""
    options, zeros = SupConOptions(contrast_mode=contrast_mode), torch.zeros(sum(samples), dtype=torch.int64)
    shards = [check_batch(torch.randn(number, views, 2), zeros[:number], None) for number in samples]
    problems = [build_problem(shard, options) for shard in shards]
    return [ShardPlan.of(problem, labels, samples, views, rank) for rank, problem in enumerate(problems)]


def batches(processes, contrast_mode):
    """Yield uneven numbers of samples, some of them 0, the views, the labels and the plans."""
    draw = random.Random(processes)
    for trial in range(TRIALS):
        samples = [draw.choice([0, 0, 1, 3, 7, 12]) for _ in range(processes)]
        views = 1 + trial % 3
        labels = torch.tensor([draw.choice([-4, 0, 9]) for _ in range(sum(samples))], dtype=torch.int64)
        yield samples, views, labels, plans(samples, views, contrast_mode, labels)


@modes
@sizes_of_group
def test_the_places_of_each_process(processes, contrast_mode):
    for samples, views, labels, every in batches(processes, contrast_mode):
        anchor_views = views if contrast_mode == "all" else 1
        owner = torch.arange(len(samples)).repeat_interleave(torch.tensor(samples))
        for rank, plan in enumerate(every):
            places = plan.anchor_places
            assert places.sort().values.tolist() == list(range(anchor_views * len(labels)))
            block = places[plan.anchor_blocks[rank]] % max(1, len(labels))
            assert owner[block].tolist() == [rank] * (anchor_views * samples[rank])
            assert plan.layout.anchor_labels.tolist() == labels[places % max(1, len(labels))].tolist()
            rows = plan.layout.row_labels[plan.row_blocks[rank]]
            assert rows.tolist() == labels[owner == rank].repeat(views).sort().values.tolist()


@modes
@sizes_of_group
def test_every_pair_is_computed_once(processes, contrast_mode):
    for samples, _, _, every in batches(processes, contrast_mode):
        anchor_labels, row_labels = every[0].layout.anchor_labels, every[0].layout.row_labels
        computed, boxed = torch.zeros(2, len(anchor_labels), len(row_labels), dtype=torch.int64)
        for plan in every:
            assert plan.peers[0] == plan.rank
            assert len(set(plan.peers)) == len(plan.peers)
            for peer in plan.peers:
                for tile, boxes in plan.tiles(peer):
                    turned = plan.layout.symmetric and tile[0] != tile[1]  # its pairs serve both of their rows
                    for count, parts in ((computed, [tile]), (boxed, boxes)):
                        for anchors, rows in parts:
                            count[anchors, rows] += 1
                            if turned:
                                count[rows, anchors] += 1
        assert (computed == 1).all(), samples
        assert (boxed[anchor_labels[:, None] == row_labels] == 1).all(), samples
        assert (boxed <= 1).all(), samples


@modes
@sizes_of_group
def test_equal_shares_are_equal_work(processes, contrast_mode):
    labels = torch.arange(24 * processes) % 5
    work = []
    for plan in plans([24] * processes, 2, contrast_mode, labels):
        tiles = [tile for peer in plan.peers for tile, _ in plan.tiles(peer)]
        work.append(sum((a.stop - a.start) * (r.stop - r.start) for a, r in tiles))
    assert max(work) <= 1.1 * sum(work) / processes


class Wires:
    """The blocks sent and received between each two processes, in order."""

    def __init__(self, monkeypatch):
        self.sent, self.received = defaultdict(list), defaultdict(list)
        monkeypatch.setattr(transfers, "collective_errors", lambda group, device: nullcontext())
        monkeypatch.setattr(dist, "get_backend_config", lambda group: "cpu:gloo,cuda:gloo")
        monkeypatch.setattr(dist, "get_global_rank", lambda group, rank: rank)
        monkeypatch.setattr(dist, "P2POp", lambda way, tensor, peer, group: (way, tensor, peer, group))
        monkeypatch.setattr(dist, "batch_isend_irecv", lambda operations: [self.post(*one) for one in operations])

    def post(self, way, tensor, peer, own):
        """Match the n-th receive with the n-th send, at the time of its `wait`."""
        assert peer != own
        assert len(tensor) > 0
        if way is dist.isend:
            self.sent[own, peer].append(tensor.clone())
            return SimpleNamespace(wait=lambda: None)
        wire, number = self.sent[peer, own], len(self.received[peer, own])
        self.received[peer, own].append(tensor)

        def wait():
            assert wire[number].shape == tensor.shape
            tensor.copy_(wire[number])

        return SimpleNamespace(wait=wait)


@modes
@sizes_of_group
def test_every_block_sent_is_received(processes, contrast_mode, monkeypatch):
    """Run all processes in step, as in `ring.gradients`: blocks come from the peer, gradients return once."""
    for samples, views, _, every in batches(processes, contrast_mode):
        wires = Wires(monkeypatch)
        sizes = [views * number for number in samples]
        rotations = [rotate_blocks(plan, torch.full((sizes[plan.rank], 2), float(plan.rank))) for plan in every]
        in_flight, returned = [None] * processes, [[] for _ in every]
        for _ in every[0].peers:
            peers = []
            for rotation in rotations:
                peer, block = next(rotation)
                assert block.tolist() == [[peer, peer]] * sizes[peer]
                peers.append(peer)
            assert sorted(peers) == list(range(processes))
            for rank in range(processes):
                if in_flight[rank] is not None:
                    returned[rank].append(in_flight[rank].wait())
                if peers[rank] != rank:
                    gradient = torch.tensor([[float(rank), peers[rank]]]).repeat(sizes[peers[rank]], 1)
                    in_flight[rank] = return_gradient(every[rank], gradient, peers[rank])
        for rotation in rotations:
            assert next(rotation, None) is None
        for rank in range(processes):
            if in_flight[rank] is not None:
                returned[rank].append(in_flight[rank].wait())
            hosts = [plan.rank for plan in every if rank in plan.peers[1:]]
            assert sorted(block.tolist() for block in returned[rank]) == [[[h, rank]] * sizes[rank] for h in hosts]
        for wire in {*wires.sent, *wires.received}:
            assert [len(x) for x in wires.sent[wire]] == [len(x) for x in wires.received[wire]], (samples, wire)


def test_gloo_sends_blocks_of_a_gpu_through_the_host(monkeypatch):
    need_fake_tensors_on_a_gpu()
    wires = Wires(monkeypatch)
    with FakeTensorMode():
        own, block = torch.empty(3, 2, device=GPU), torch.empty(4, 2, device=GPU)
        wires.sent[1, 0].append(torch.empty(4, 2))
        received = P2PTransfer.post(own, 1, block, 1, 0).wait()
    assert received is block
    assert [sent.device.type for sent in wires.sent[0, 1] + wires.received[1, 0]] == ["cpu", "cpu"]
