"""Equal shards on several processes are told once, in real processes (gloo); shards of right use never."""

import warnings

import pytest
import torch
from helpers.process_groups import run_processes
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners, reducers
from torch import distributed as dist
from torch.utils.data import DataLoader

from pml_supcon.distributed import shards
from pml_supcon.distributed.shards import LossInputs, ranks_with_equal_shards
from pml_supcon.losses import GlobalBatchLoss, QueueLoss, SupConLossIn, SupConLossOut
from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.views import MultiViewTensorDataset, SeededDataset, augmentation

LABELS = torch.arange(8) % 3
LOSSES = {
    "out": SupConLossOut,
    "in": SupConLossIn,
    "reference": lambda: SupConLossOut(backend="reference"),
    "another reducer": lambda: SupConLossOut(reducer=reducers.ThresholdReducer(low=1.5)),
    "queue": lambda: QueueLoss(SupConLossOut(), queue_size=32, embedding_size=5),
    "pml nt-xent": pml.NTXentLoss,
    "pml triplet": pml.TripletMarginLoss,
}


def rows(seed, dtype=torch.float32):
    return torch.randn(8, 2, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)


def call(loss, embeddings, labels, calls=1):
    """Return the messages of the warnings of some calls, the last value and its gradient."""
    shards.warn_of_equal_shards.cache_clear()
    embeddings = embeddings.detach().requires_grad_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # a loop's own filters do not make it more than one
        for _ in range(calls):
            value = loss(embeddings, labels)
    value.backward()
    return (
        [str(one.message) for one in caught if issubclass(one.category, UserWarning)],
        value.detach(),
        embeddings.grad,
    )


def work(rank):
    shards.COMPARED_CALLS = 10**6  # of all losses together
    duplicated, right = {}, {}
    for name, loss in LOSSES.items():
        duplicated[name] = call(GlobalBatchLoss(loss()), rows(0), LABELS, calls=3)
        right[name] = call(GlobalBatchLoss(loss()), rows(rank), LABELS, calls=3)  # labels may be equal on all
    own = GlobalBatchLoss(SupConLossOut())
    mined = GlobalBatchLoss(pml.TripletMarginLoss(), miner=miners.BatchHardMiner())
    duplicated["mined"] = call(mined, rows(0), LABELS)
    duplicated["without labels"] = call(own, rows(0), None)
    duplicated["two rows"] = call(own, rows(0)[:2, 0], LABELS[:2])
    duplicated["two views of one sample"] = call(own, rows(0)[:1], LABELS[:1])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        duplicated[str(dtype)] = call(own, rows(0, dtype), LABELS)
        right[str(dtype)] = call(own, rows(rank, dtype), LABELS)
    right["equal rows, other labels"] = call(own, rows(0), LABELS + rank)
    right["a collapsed encoder"] = call(own, rows(0)[:1, :1].expand(8, 2, 5), LABELS)
    right["zeros"] = call(own, torch.zeros(8, 2, 5), LABELS)
    right["one row"] = call(own, rows(0)[:1, 0], LABELS[:1])
    right["no rows"] = call(own, rows(0)[:0], LABELS[:0])
    right["one process without rows"] = call(own, rows(0)[: 8 * rank], LABELS[: 8 * rank])
    right["another order"] = call(own, rows(0) if rank else rows(0).flip(0), LABELS.flip(0))
    for name, options in {"forgotten": {}, "given": {"num_replicas": dist.get_world_size(), "rank": rank}}.items():
        (duplicated if name == "forgotten" else right)[f"num_replicas {name}"] = train(options)

    checksum = shards.checksum
    shards.checksum = lambda own: 0
    unchecked = {name: call(GlobalBatchLoss(loss()), rows(rank), LABELS, calls=3) for name, loss in LOSSES.items()}
    shards.checksum = checksum
    shards.warn_of_equal_shards.cache_clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Expected different samples")
        with pytest.raises(UserWarning, match="ranks 0 and 1"):  # raised on all processes: none waits for another
            own(rows(0), LABELS)
    return duplicated, right, unchecked


def train(options):
    """Return the warnings of an epoch of seeded views."""
    images, labels = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 4
    augment = augmentation("stacked_randaugment", 8, mean=[0.5], std=[0.5], family="digits")
    data = SeededDataset(MultiViewTensorDataset((255 * images).to(torch.uint8), labels, augment))
    sampler = MultiViewBatchSampler(labels, batch_size=16, max_per_class=4, **options)
    torch.manual_seed(0)
    encoder, loss = torch.nn.Linear(64, 5), GlobalBatchLoss(SupConLossOut())
    found = []
    for views, ids in DataLoader(data, batch_sampler=sampler, collate_fn=data.collate):
        found += call(loss, encoder(views.flatten(2)), ids)[0]
    return found[:1], None, None


def some_are_equal(rank):
    return call(GlobalBatchLoss(SupConLossOut()), rows(rank % 2), LABELS)[0]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_processes(work, 2, tmp_path_factory.mktemp("gloo"))


def test_equal_shards_are_told_once_on_every_process(results):
    expected = (
        "Expected different samples on each process, but got the same embeddings and labels on ranks 0 and 1: each "
        "sample is contrasted with copies of itself. Divide the batches: "
        "`MultiViewBatchSampler(..., num_replicas=world_size, rank=rank)`, or a `DistributedSampler`"
    )
    for duplicated, _, _ in results:
        assert {name: messages for name, (messages, *_) in duplicated.items()} == {
            name: [expected] for name in duplicated
        }


def test_right_use_gives_no_warning(results):
    for _, right, _ in results:
        assert {name: messages for name, (messages, *_) in right.items()} == {name: [] for name in right}


@pytest.mark.parametrize("name", LOSSES)
def test_the_check_changes_no_bit_of_the_loss_and_its_gradient(results, name):
    for _, right, unchecked in results:
        assert all(torch.equal(one, other) for one, other in zip(right[name][1:], unchecked[name][1:], strict=True))


@pytest.mark.slow
def test_some_of_three_processes_are_equal(tmp_path):
    for (message,) in run_processes(some_are_equal, 3, tmp_path):
        assert "on ranks 0 and 2:" in message


def test_the_ranks_are_named():
    assert ranks_with_equal_shards([7, 5, 7, 5, 7, 0, 0]) == "0 and 2 and 4; 1 and 3"
    assert ranks_with_equal_shards([0, 0, 1]) == ""


def checksum(*arguments):
    """Return the checksum of a shard, as a number."""
    return int(shards.checksum(LossInputs(*arguments)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_bit_counts(dtype):
    embeddings, labels = rows(0, dtype)[:3, :, :4], LABELS[:3]
    own = checksum(embeddings, labels)
    strided = embeddings.transpose(0, 2).contiguous().transpose(0, 2)
    assert own == checksum(embeddings.clone(), labels.clone()) == checksum(strided, labels.to(torch.uint8)) != 0
    integers = shards.INTEGERS[embeddings.element_size()]
    found = {
        own,
        checksum(embeddings, None),
        checksum(embeddings, labels + 2**40),
        checksum(embeddings, labels.flip(0)),
    }
    found |= {checksum(embeddings[order], labels) for order in ([1, 0, 2], [0, 2, 1], [2, 1, 0])}
    found |= {checksum(embeddings.flip(1), labels), checksum(embeddings.flip(2), labels)}
    flips = [(place, bit) for place in range(embeddings.numel()) for bit in range(8 * embeddings.element_size())]
    for place, bit in flips:
        changed = embeddings.clone()
        flat = changed.view(integers).view(-1)
        flat[place] ^= torch.tensor(1).to(integers) << bit
        found.add(checksum(changed, labels))
    assert len(found) == 4 + 3 + 2 + len(flips)


def test_only_the_first_calls_of_a_group_read_the_rows():
    class Group:
        pass

    one, other = Group(), Group()
    found = [shards.is_first_call(one) for _ in range(shards.COMPARED_CALLS + 2)]
    assert found == [True] * shards.COMPARED_CALLS + [False, False]
    assert shards.is_first_call(other)
