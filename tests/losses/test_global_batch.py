"""`GlobalBatchLoss` in real processes under DDP, with uneven and empty shares, against one process with all rows."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from helpers.process_groups import run_processes
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners, reducers, regularizers
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pml_supcon.functional.supcon.tiled import layout
from pml_supcon.losses import GlobalBatchLoss, SelfSupervisedLoss, SupConLossIn, SupConLossOut

SAMPLES, WIDTH = 13, 6
SHARES = {3: [6, 0, 7], 4: [4, 1, 0, 8]}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}  # relative to the largest entry

LOSSES = {
    "out": SupConLossOut,
    "in": SupConLossIn,
    "one_positive": lambda: SupConLossOut(denominator="one_positive"),
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
    "pml supcon": pml.SupConLoss,
    "pml nt-xent": pml.NTXentLoss,
    "pml triplet": pml.TripletMarginLoss,
    "pml contrastive": pml.ContrastiveLoss,
}
MINED = {
    "mined": (SupConLossOut, miners.MultiSimilarityMiner),
    "mined triplets": (pml.TripletMarginLoss, miners.BatchHardMiner),
    "mined at random": (pml.MarginLoss, miners.DistanceWeightedMiner),
}
ROWS = ["out", "cap", "pml triplet"]  # also as view-major (N, D)


class Network(nn.Module):
    """`(B, V, WIDTH)` to `(B, V, 4)`."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x):
        return self.layers(x)


def batch(dtype):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(SAMPLES, 2, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.randint(0, 5, (SAMPLES,), generator=generator)


def network(dtype):
    torch.manual_seed(1)
    return Network().to(dtype)


def step(model, loss, images, labels, form="views"):
    """The loss and the gradients of all parameters, as one tensor."""
    model.zero_grad()
    embeddings = model(images)
    if form == "rows":
        embeddings, labels = embeddings.transpose(0, 1).flatten(0, 1), labels.repeat(2)
    value = loss(embeddings, labels)
    value.backward()
    return value.detach(), torch.cat([parameter.grad.flatten().clone() for parameter in model.parameters()])


class Derived(SupConLossOut):
    def compute_loss(self, *arguments, **options):
        return super().compute_loss(*arguments, **options) | {
            "loss": {"losses": torch.tensor(7.0), "indices": None, "reduction_type": "already_reduced"}
        }


def made(name):
    """The loss of a name, the same whenever it is made."""
    torch.manual_seed(2)
    if name in MINED:
        loss, miner = MINED[name]
        return GlobalBatchLoss(loss(), miner=miner())
    return GlobalBatchLoss(LOSSES[name](), num_views=2)


def cases():
    for dtype in TOLERANCE:
        for name in [*LOSSES, *MINED]:
            if name != "mined at random":
                yield name, "views", dtype
        for name in ROWS:
            yield name, "rows", dtype


def work(rank, shares):
    layout.TILE = layout.STRIP = 5  # several tiles for each pair of processes
    mine = slice(sum(shares[:rank]), sum(shares[: rank + 1]))
    results = {}
    for name, form, dtype in cases():
        images, labels = batch(dtype)
        model = DistributedDataParallel(network(dtype))
        results[name, form, dtype] = step(model, made(name), images[mine], labels[mine], form)
    model = DistributedDataParallel(network(torch.float64))
    images, labels = batch(torch.float64)
    torch.manual_seed(rank)  # the miner draws differently on each process
    results["drawn"] = step(model, made("mined at random"), images[mine], labels[mine])
    results["uint8"] = step(model, made("out"), images[mine], (labels + 250)[mine].to(torch.uint8))
    results["no labels"] = step(model, GlobalBatchLoss(SupConLossOut()), images[mine], None)
    views = model(images[mine]).unbind(1)
    results["two views"] = GlobalBatchLoss(SelfSupervisedLoss(pml.NTXentLoss()))(views[0], ref_emb=views[1]).detach()
    results["references"] = GlobalBatchLoss(SupConLossOut())(
        views[0], labels[mine], ref_emb=views[1], ref_labels=labels[mine]
    ).detach()  # fmt: skip
    embeddings = network(torch.float32)(batch(torch.float32)[0][mine]).detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = GlobalBatchLoss(SupConLossOut())(embeddings, labels[mine])
        value.backward()
    loss = GlobalBatchLoss(SupConLossOut(contrast_mode="one"), num_views=2)
    rows = images[mine].transpose(0, 1).flatten(0, 1)
    results["views by the wrapper"] = loss(rows, labels[mine].repeat(2))
    results["a loss derived from ours"] = GlobalBatchLoss(Derived())(images[mine], labels[mine])
    compiled = torch.compile(GlobalBatchLoss(SupConLossOut()), backend="eager")
    results["compiled"] = compiled(images[mine], labels[mine])
    results["autocast"] = value.detach(), embeddings.grad / len(shares)
    half = embeddings.detach().bfloat16().requires_grad_()
    GlobalBatchLoss(SupConLossOut(backend="reference"))(half, labels[mine]).backward()
    results["half"] = half.grad / len(shares)
    others = dist.new_group([0, len(shares) - 1])  # without those between
    if rank in (0, len(shares) - 1):
        loss = GlobalBatchLoss(SupConLossOut(), miner=miners.MultiSimilarityMiner(), group=others)
        plain = GlobalBatchLoss(SupConLossOut(), group=others)
        results["group"] = [over(images[mine], labels[mine]) for over in (plain, loss)]
    results["nobody has a row"] = step(model, GlobalBatchLoss(SupConLossOut()), images[:0], labels[:0])
    return results


@pytest.fixture(scope="module", params=[4, pytest.param(3, marks=pytest.mark.slow)])
def results(request, tmp_path_factory):
    """What each of W processes computed."""
    return run_processes(work, request.param, tmp_path_factory.mktemp("gloo"), SHARES[request.param])


def alone(name, form, dtype):
    """What one process with the whole batch computes."""
    return step(network(dtype), made(name), *batch(dtype), form)


def assert_close(found, wanted, dtype):
    for mine, right in zip(found, wanted, strict=True):
        assert (mine - right).abs().max() <= TOLERANCE[dtype] * right.abs().max()


@pytest.mark.parametrize(("name", "form", "dtype"), list(cases()))
def test_equals_one_process_with_the_whole_batch(results, name, form, dtype):
    wanted = alone(name, form, dtype)
    assert wanted[1].abs().max() > 1e-4
    for result in results:
        assert_close(result[name, form, dtype], wanted, dtype)


def test_all_processes_use_what_one_miner_draws(results):
    values = [result["drawn"] for result in results]
    assert values[0][0] > 0
    for value in values[1:]:
        assert_close(value, values[0], torch.float64)


def test_labels_of_any_integer_dtype(results):
    images, labels = batch(torch.float64)
    wanted = step(network(torch.float64), SupConLossOut(), images, (labels + 250) % 256)
    for result in results:
        assert_close(result["uint8"], wanted, torch.float64)


def test_without_labels(results):
    wanted = step(network(torch.float64), SupConLossOut(), batch(torch.float64)[0], None)
    for result in results:
        assert_close(result["no labels"], wanted, torch.float64)


def test_views_and_references_given_apart(results):
    images, labels = batch(torch.float64)
    one, other = network(torch.float64)(images).detach().unbind(1)
    for result in results:
        torch.testing.assert_close(result["two views"], SelfSupervisedLoss(pml.NTXentLoss())(one, other))
        wanted = SupConLossOut()(one, labels, ref_emb=other, ref_labels=labels.clone())
        torch.testing.assert_close(result["references"], wanted)


def test_half_precision(results):
    """Under autocast the loss is float32; half-precision rows have gradients of their own kind, summed in float32."""
    images, labels = batch(torch.float32)
    embeddings = network(torch.float32)(images).detach().requires_grad_()
    value = SupConLossOut()(embeddings, labels)
    value.backward()
    gradient = torch.cat([result["autocast"][1] for result in results])
    assert_close((results[0]["autocast"][0], gradient), (value.detach(), embeddings.grad), torch.float32)
    halves = torch.cat([result["half"] for result in results])
    assert halves.dtype == torch.bfloat16
    assert (halves - embeddings.grad).abs().max() < 0.05 * embeddings.grad.abs().max()


def test_ways_to_call_it(results):
    images, labels = batch(torch.float64)
    first, plain = SupConLossOut(contrast_mode="one")(images, labels), SupConLossOut()(images, labels)
    for result in results:
        torch.testing.assert_close(result["views by the wrapper"], first)
        torch.testing.assert_close(result["compiled"], plain)
        assert result["a loss derived from ours"] == 7


def test_some_of_the_processes(results):
    shares = SHARES[len(results)]
    images, labels = batch(torch.float64)
    mine = list(range(shares[0])) + list(range(SAMPLES - shares[-1], SAMPLES))
    wanted = [SupConLossOut()(images[mine], labels[mine]), made("mined")(images[mine], labels[mine])]
    for result in (results[0], results[-1]):
        torch.testing.assert_close(result["group"], wanted, rtol=1e-12, atol=0)


def test_a_batch_without_rows_is_zero(results):
    for result in results:
        value, gradient = result["nobody has a row"]
        assert value == 0
        assert gradient.abs().max() == 0


def test_one_process_needs_no_ceremony():
    images, labels = batch(torch.float64)
    for name in ("out", "cap", "pml triplet"):
        form = "rows" if name == "pml triplet" else "views"
        wanted = step(network(torch.float64), LOSSES[name](), images, labels, form)
        assert_close(step(network(torch.float64), made(name), images, labels), wanted, torch.float64)


def test_a_miner_alone():
    images, labels = batch(torch.float64)
    rows, repeated = images.transpose(0, 1).flatten(0, 1), labels.repeat(2)
    pairs = miners.MultiSimilarityMiner()(rows, repeated)
    assert made("mined")(images, labels) == SupConLossOut()(rows, repeated, pairs)


def test_can_be_copied_and_pickled():
    loss = made("cap")
    images, labels = batch(torch.float64)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other(images, labels) == loss(images, labels)


def test_views_that_the_loss_does_not_know():
    """`num_views` counts for our losses too, and what is None is not there."""
    images, labels = batch(torch.float64)
    rows, repeated = images.transpose(0, 1).flatten(0, 1), labels.repeat(2)
    loss = GlobalBatchLoss(SupConLossOut(contrast_mode="one"), num_views=2)
    assert loss(rows, repeated, keys=None) == SupConLossOut(contrast_mode="one")(images, labels)
    assert GlobalBatchLoss(SupConLossOut(), num_views=2)(rows) == SupConLossOut()(images)
    with pytest.raises(ValueError, match="Expected `labels` to repeat the labels of the first view"):
        GlobalBatchLoss(pml.NTXentLoss(), num_views=2)(rows, labels.repeat_interleave(2))


def test_refuses_what_is_no_loss():
    with pytest.raises(TypeError, match="Expected argument `loss` to be a loss module, but got int"):
        GlobalBatchLoss(3)
    with pytest.raises(ValueError, match="Expected argument `num_views` to be at least 1, but got 0"):
        GlobalBatchLoss(SupConLossOut(), num_views=0)
    with pytest.raises(ValueError, match="Expected argument `num_views` to equal num_views=3 of the loss, but got 2"):
        GlobalBatchLoss(SupConLossOut(num_views=3), num_views=2)
    with pytest.raises(ValueError, match="Expected the rows of `embeddings` to be num_views=2 views"):
        GlobalBatchLoss(pml.NTXentLoss(), num_views=2)(torch.randn(3, 4), torch.arange(3))
