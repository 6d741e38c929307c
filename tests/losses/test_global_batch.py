"""`GlobalBatchLoss` in real processes under DDP, some without rows, against one process with the whole batch."""

import copy
import pickle
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from helpers.process_groups import run_processes
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners, reducers, regularizers
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pml_supcon import _layouts
from pml_supcon.functional.supcon import checks, dense
from pml_supcon.functional.supcon.tiled import layout
from pml_supcon.losses import GlobalBatchLoss, QueueLoss, SelfSupervisedLoss, SupConLossIn, SupConLossOut

SAMPLES, WIDTH = 13, 6
SHARDS = {3: [6, 0, 7], 4: [4, 1, 0, 8]}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}  # relative to the largest entry

LOSSES = {
    "out": SupConLossOut,
    "in": SupConLossIn,
    "one_positive": lambda: SupConLossOut(denominator="one_positive"),
    "unlabelled": lambda: SupConLossOut(ignore_label=2),
    "unlabelled, cap, reference": lambda: SupConLossIn(
        ignore_label=2, positives_cap=2, num_views=2, backend="reference"
    ),
    "unlabelled, first view, cap": lambda: SupConLossIn(
        ignore_label=2, contrast_mode="one", positives_cap=2, num_views=2
    ),
    "class balanced": lambda: SupConLossOut(class_balanced=True),
    "class balanced, first view, cap": lambda: SupConLossIn(
        class_balanced=True, contrast_mode="one", positives_cap=2, num_views=2
    ),
    "class balanced, sharp": lambda: SupConLossOut(temperature=0.001, class_balanced=True),
    "margin": lambda: SupConLossIn(denominator="one_positive", margin=0.25),
    "negatives": lambda: SupConLossIn(denominator="negatives"),
    "cap": lambda: SupConLossOut(positives_cap=2, num_views=2),
    "first view": lambda: SupConLossOut(contrast_mode="one"),
    "first view, cap, in": lambda: SupConLossIn(contrast_mode="one", positives_cap=2, num_views=2),
    "scaled, sharp": lambda: SupConLossOut(temperature=0.02, scale_by_temperature=True),
    "reference": lambda: SupConLossOut(backend="reference", positives_cap=2, num_views=2),
    "reference, first view": lambda: SupConLossIn(backend="reference", contrast_mode="one"),
    "another reducer": lambda: SupConLossOut(reducer=reducers.ThresholdReducer(low=1.5)),
    "a weighted reducer": lambda: SupConLossOut(reducer=reducers.ClassWeightedReducer(torch.rand(6) + 0.5)),
    "regularised": lambda: SupConLossOut(embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=0.1),
    "pml nt-xent": pml.NTXentLoss,
    "pml triplet": pml.TripletMarginLoss,
}
MINED = {
    "mined": (SupConLossOut, miners.MultiSimilarityMiner),
    "mined triplets": (pml.TripletMarginLoss, miners.BatchHardMiner),
    "mined at random": (pml.MarginLoss, miners.DistanceWeightedMiner),
}
MASKED = ["out", "in", "first view", "reference", "another reducer", "class balanced", "scaled, sharp"]
MASK = torch.arange(SAMPLES) % 3 != 1  # of the samples that are anchors
ON_GPUS = ["in", "cap", "first view", "reference", "regularised", "pml triplet", "mined"]
CASES = [
    *((name, "views", torch.float64) for name in [*LOSSES, "mined", "mined triplets"]),
    *((name, "rows", torch.float64) for name in ("out", "cap", "unlabelled", "pml triplet")),  # view-major (N, D)
    *((name, "views", torch.float32) for name in ("in", "cap", "scaled, sharp", "reference", "pml triplet")),
]


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(SAMPLES, 2, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.randint(0, 5, (SAMPLES,), generator=generator)


def network(dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)


def new_loss(name):
    torch.manual_seed(2)
    if name in MINED:
        loss, miner = MINED[name]
        return GlobalBatchLoss(loss(), miner=miner())
    return GlobalBatchLoss(LOSSES[name](), num_views=2)


def step(model, loss, images, labels, form="views", **more):
    """Return the loss, and the gradients of all parameters as one tensor."""
    model.zero_grad()
    embeddings = model(images)
    if form == "rows":
        embeddings, labels = embeddings.transpose(0, 1).flatten(0, 1), labels.repeat(2)
    value = loss(embeddings, labels, **more)
    value.backward()
    return value.detach(), torch.cat([parameter.grad.flatten().clone() for parameter in model.parameters()])


class Derived(SupConLossOut):
    def compute_loss(self, *arguments, **options):
        seven = {"losses": torch.tensor(7.0), "indices": None, "reduction_type": "already_reduced"}
        return super().compute_loss(*arguments, **options) | {"loss": seven}


def work(rank, sizes):
    layout.TILE = layout.STRIP = 5  # several tiles for each pair of processes
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    results = {}
    for name, form, dtype in CASES:
        images, labels = batch(dtype)
        model = DistributedDataParallel(network(dtype))
        results[name, form, dtype] = step(model, new_loss(name), images[mine], labels[mine], form)
    images, labels = batch()
    model, plain = DistributedDataParallel(network()), GlobalBatchLoss(SupConLossOut())
    for name in MASKED:
        for form in ("views", "rows"):
            results["anchors", name, form] = step(
                model, new_loss(name), images[mine], labels[mine], form, anchors=MASK[mine]
            )
    images, labels = images[mine], labels[mine]
    torch.manual_seed(rank)  # the miner draws differently on each process
    results["drawn"] = step(model, new_loss("mined at random"), images, labels)
    results["uint8"] = step(model, plain, images, (labels + 250).to(torch.uint8))
    results["no labels"] = step(model, plain, images, None)
    one, other = model(images).detach().unbind(1)
    results["two views"] = GlobalBatchLoss(SelfSupervisedLoss(pml.NTXentLoss()))(one, ref_emb=other)
    results["references"] = plain(one, labels, ref_emb=other, ref_labels=labels)
    rows = images.transpose(0, 1).flatten(0, 1)
    results["views by the wrapper"] = GlobalBatchLoss(SupConLossOut(contrast_mode="one"), num_views=2)(
        rows, labels.repeat(2)
    )
    preferred, dense.PREFERRED_PAIRS = dense.PREFERRED_PAIRS, 150  # a share of 12 rows is below, one of 14 above
    results["shares of two sizes"] = plain(images, labels)
    dense.PREFERRED_PAIRS = preferred
    results["a loss derived from ours"] = GlobalBatchLoss(Derived())(images, labels)
    results["compiled"] = torch.compile(GlobalBatchLoss(SupConLossOut()), backend="eager")(images, labels)

    embeddings = network(torch.float32)(images.float()).detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = plain(embeddings, labels)
        value.backward()
    results["autocast"] = value.detach(), embeddings.grad / len(sizes)
    half = embeddings.detach().bfloat16().requires_grad_()
    GlobalBatchLoss(SupConLossOut(backend="reference"))(half, labels).backward()
    results["half"] = half.grad / len(sizes)

    others = dist.new_group([0, len(sizes) - 1])  # without the ranks between
    if rank in (0, len(sizes) - 1):
        mined = GlobalBatchLoss(SupConLossOut(), miner=miners.MultiSimilarityMiner(), group=others)
        results["group"] = [loss(images, labels) for loss in (GlobalBatchLoss(SupConLossOut(), group=others), mined)]
    results["no rows at all"] = step(model, plain, images[:0], labels[:0])
    return results


@pytest.fixture(scope="module", params=[3, pytest.param(4, marks=pytest.mark.slow)])
def results(request, tmp_path_factory):
    """Return the results of W processes, by rank."""
    return run_processes(work, request.param, tmp_path_factory.mktemp("gloo"), SHARDS[request.param])


def assert_close(ours, expected, dtype=torch.float64):
    for mine, right in zip(ours, expected, strict=True):
        assert (mine - right).abs().max() <= TOLERANCE[dtype] * right.abs().max()


@pytest.mark.parametrize(("name", "form", "dtype"), CASES)
def test_equals_one_process_with_the_whole_batch(results, name, form, dtype):
    expected = step(network(dtype), new_loss(name), *batch(dtype), form)
    assert expected[1].abs().max() > 1e-4
    for result in results:
        assert_close(result[name, form, dtype], expected, dtype)


def test_all_processes_use_the_pairs_of_one_miner(results):
    first, *others = (result["drawn"] for result in results)
    assert first[0] > 0
    for other in others:
        assert_close(other, first)


def test_ways_to_call_it(results):
    images, labels = batch()
    one, other = network()(images).detach().unbind(1)
    uint8 = step(network(), SupConLossOut(), images, (labels + 250) % 256)
    no_labels = step(network(), SupConLossOut(), images, None)
    expected = {
        "two views": SelfSupervisedLoss(pml.NTXentLoss())(one, other),
        "references": SupConLossOut()(one, labels, ref_emb=other, ref_labels=labels.clone()),
        "views by the wrapper": SupConLossOut(contrast_mode="one")(images, labels),
        "compiled": SupConLossOut()(images, labels),
        "shares of two sizes": SupConLossOut()(images, labels),
        "a loss derived from ours": torch.tensor(7.0),
    }
    for result in results:
        assert_close(result["uint8"], uint8)
        assert_close(result["no labels"], no_labels)
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, msg=name)
        assert [part.abs().max() for part in result["no rows at all"]] == [0, 0]


def test_half_precision(results):
    """Under autocast the loss is float32; half-precision rows get gradients of their dtype, summed in float32."""
    images, labels = batch(torch.float32)
    embeddings = network(torch.float32)(images).detach().requires_grad_()
    value = SupConLossOut()(embeddings, labels)
    value.backward()
    gradient = torch.cat([result["autocast"][1] for result in results])
    assert_close((results[0]["autocast"][0], gradient), (value.detach(), embeddings.grad), torch.float32)
    halves = torch.cat([result["half"] for result in results])
    assert halves.dtype == torch.bfloat16
    assert (halves - embeddings.grad).abs().max() < 0.05 * embeddings.grad.abs().max()


@pytest.mark.parametrize("form", ["views", "rows"])
@pytest.mark.parametrize("name", MASKED)
def test_a_mask_of_anchors(results, name, form):
    expected = step(network(), new_loss(name), *batch(), form, anchors=MASK)
    assert (expected[0] - new_loss(name)(network()(batch()[0]), batch()[1])).abs() > 1e-4
    for result in results:
        assert_close(result["anchors", name, form], expected)


def test_some_of_the_processes(results):
    sizes = SHARDS[len(results)]
    images, labels = batch()
    mine = [*range(sizes[0]), *range(SAMPLES - sizes[-1], SAMPLES)]
    expected = [SupConLossOut()(images[mine], labels[mine]), new_loss("mined")(images[mine], labels[mine])]
    for result in (results[0], results[-1]):
        torch.testing.assert_close(result["group"], expected, rtol=1e-12, atol=0)


def on_gpus(rank, sizes, backend, devices):
    """Return each loss and the gradient that DDP's average would add, on a device that is not the current one."""
    group, device = dist.new_group(backend=backend), torch.device(devices[rank])
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    images, labels = (part[mine].to(device) for part in batch(torch.float32))
    results = {}
    for name in ON_GPUS:
        loss = new_loss(name)
        loss.group = group
        value, gradient = step(network(torch.float32).to(device), loss, images, labels)
        results[name] = value.cpu(), gradient.cpu() / len(sizes)
    return results


def equals_one_process(tmp_path, backend, devices):
    results = run_processes(on_gpus, 2, tmp_path, [9, 4], backend, devices)
    for name in ON_GPUS:
        value, gradient = step(network(torch.float32), new_loss(name), *batch(torch.float32))
        summed = sum(result[name][1] for result in results)
        for result in results:
            assert_close((result[name][0], summed), (value, gradient), torch.float32)


@pytest.mark.slow
def test_two_processes_without_ddp(tmp_path):
    equals_one_process(tmp_path, "gloo", ["cpu", "cpu"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gloo_with_rows_on_a_gpu(tmp_path):
    equals_one_process(tmp_path, "gloo", ["cuda:0", "cuda:0"])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("backend", ["nccl", "cpu:gloo,cuda:nccl"])
def test_nccl(tmp_path, backend):
    equals_one_process(tmp_path, backend, ["cuda:0", "cuda:1"])


def test_without_a_process_group():
    images, labels = batch()
    rows, repeated = images.transpose(0, 1).flatten(0, 1), labels.repeat(2)
    for name in ("out", "cap", "pml triplet"):
        form = "rows" if name == "pml triplet" else "views"
        expected = step(network(), LOSSES[name](), images, labels, form)
        assert_close(step(network(), new_loss(name), images, labels), expected)
    pairs = miners.MultiSimilarityMiner()(rows, repeated)
    assert new_loss("mined")(images, labels) == SupConLossOut()(rows, repeated, pairs)
    loss = new_loss("cap")
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other(images, labels) == loss(images, labels)


def test_one_process_checks_and_orders_the_rows_once(monkeypatch):
    check, flatten = Mock(wraps=checks.check_embeddings), Mock(wraps=_layouts.flatten_views)
    monkeypatch.setattr(checks, "check_embeddings", check)
    monkeypatch.setattr(_layouts, "flatten_views", flatten)
    GlobalBatchLoss(SupConLossOut())(*batch())
    assert (check.call_count, flatten.call_count) == (1, 1)
    GlobalBatchLoss(QueueLoss(SupConLossOut(), 6, 64, dtype=torch.float64))(*batch())
    assert flatten.call_count == 2


def test_views_that_only_the_wrapper_knows():
    images, labels = batch()
    rows, repeated = images.transpose(0, 1).flatten(0, 1), labels.repeat(2)
    loss = GlobalBatchLoss(SupConLossOut(contrast_mode="one"), num_views=2)
    assert loss(rows, repeated, keys=None) == SupConLossOut(contrast_mode="one")(images, labels)
    assert GlobalBatchLoss(SupConLossOut(), num_views=2)(rows) == SupConLossOut()(images)
    with pytest.raises(ValueError, match="Expected `labels` to repeat the labels of the first view"):
        GlobalBatchLoss(pml.NTXentLoss(), num_views=2)(rows, labels.repeat_interleave(2))


def test_invalid_arguments():
    with pytest.raises(TypeError, match="Expected argument `loss` to be a loss module, but got int"):
        GlobalBatchLoss(3)
    with pytest.raises(ValueError, match="Expected argument `num_views` to be at least 1, but got 0"):
        GlobalBatchLoss(SupConLossOut(), num_views=0)
    with pytest.raises(ValueError, match="Expected argument `num_views` to equal num_views=3 of the loss, but got 2"):
        GlobalBatchLoss(SupConLossOut(num_views=3), num_views=2)
    with pytest.raises(ValueError, match="Expected the rows of `embeddings` to be num_views=2 views"):
        GlobalBatchLoss(pml.NTXentLoss(), num_views=2)(torch.randn(3, 4), torch.arange(3))


def test_a_miner_needs_values_and_labels_of_the_references():
    miner = miners.BatchHardMiner()
    loss, rows, labels = GlobalBatchLoss(pml.ContrastiveLoss(), miner=miner), torch.randn(4, 3), torch.arange(4) % 2
    with pytest.raises(ValueError, match="`ref_labels` together with `ref_emb`"):
        loss(rows, labels, ref_emb=rows)
    with pytest.raises(ValueError, match="`embeddings` to have values, but got a tensor on the meta device"):
        loss(rows.to("meta"), labels.to("meta"))


@pytest.mark.parametrize("miner", [None, miners.BatchHardMiner()], ids=["no miner", "miner"])
@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_labels_may_have_two_dtypes(dtype, miner):
    loss, rows, references = GlobalBatchLoss(pml.ContrastiveLoss(), miner=miner), torch.randn(6, 3), torch.randn(4, 3)
    labels, ref_labels = torch.arange(6) % 2, torch.arange(4) % 2
    right = loss(rows, labels, ref_emb=references, ref_labels=ref_labels)
    for given in ((labels.to(dtype), ref_labels), (labels, ref_labels.to(dtype)), (labels.to(dtype), ref_labels.int())):
        assert loss(rows, given[0], ref_emb=references, ref_labels=given[1]) == right
