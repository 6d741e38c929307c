"""PML's `CrossBatchMemory` and `SelfSupervisedLoss` around our losses, beside PML's around `SupConLoss`."""

import copy
import pickle

import pytest
import torch
from helpers import supcon_oracle
from helpers.supcon_batches import listed_pairs, random_rows, value_and_gradient
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners

from pml_supcon import losses

with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)  # without negatives PML's loss is 0, ours is not: these batches have some
    STEPS = [(random_rows(8, 4, dtype=torch.float32), torch.randint(0, 3, (8,))) for _ in range(4)]  # wraps the memory
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def new_memory(loss_class=losses.SupConLossOut, *, size=20, miner=None, **options):
    return losses.CrossBatchMemory(loss_class(**options), embedding_size=4, memory_size=size, miner=miner)


def pml_memory(miner=None):
    return pml.CrossBatchMemory(pml.SupConLoss(), embedding_size=4, memory_size=20, miner=miner)


@pytest.mark.parametrize("mask", [None, torch.arange(8) >= 4])  # with a mask: queries, then a momentum encoder's keys
@pytest.mark.parametrize("miner", [None, miners.MultiSimilarityMiner(), miners.BatchHardMiner()])
def test_cross_batch_memory_equals_pml_with_supcon_loss(miner, mask):
    ours, theirs = new_memory(miner=miner), pml_memory(miner)
    for rows, labels in STEPS:
        expected = value_and_gradient(theirs, rows, labels, enqueue_mask=mask)
        torch.testing.assert_close(value_and_gradient(ours, rows, labels, enqueue_mask=mask), expected, **CLOSE)
        assert expected[0] > 0


class ListedMemory(pml.CrossBatchMemory):
    """PML's memory, which lists all pairs, around our losses."""

    @staticmethod
    def supported_losses():
        return losses.CrossBatchMemory.supported_losses()


def no_lists(*_):
    raise AssertionError("pairs were listed")


@pytest.mark.parametrize("loss_class", [losses.SupConLossOut, losses.SupConLossIn])
@pytest.mark.parametrize("denominator", ["all", "one_positive", "negatives"])
@pytest.mark.parametrize("memory_size", [8, 20, 23])
def test_cross_batch_memory_without_lists_equals_lists(loss_class, denominator, memory_size, monkeypatch):
    loss, options = loss_class(denominator=denominator), {"embedding_size": 4, "memory_size": memory_size}
    theirs, ours = ListedMemory(loss, **options), losses.CrossBatchMemory(loss, **options)
    monkeypatch.setattr(ours, "create_indices_tuple", no_lists)
    for step, (rows, labels) in enumerate([*STEPS, *STEPS]):
        rows, labels = rows.double()[: 8 - step % 3], labels[: 8 - step % 3]
        expected = value_and_gradient(theirs, rows, labels)
        torch.testing.assert_close(value_and_gradient(ours, rows, labels), expected, rtol=1e-10, atol=1e-12)
        assert torch.equal(ours.embedding_memory, theirs.embedding_memory)
        assert torch.equal(ours.label_memory, theirs.label_memory)
        assert (ours.queue_idx, ours.has_been_filled) == (theirs.queue_idx, theirs.has_been_filled)


def test_cross_batch_memory_with_anchors_of_the_first_view():
    memory = new_memory(num_views=2, contrast_mode="one")
    labels = torch.tensor([0, 1, 0, 2]).repeat(2)
    (first, _), (second, _) = STEPS[:2]
    memory(first, labels)
    listed = {"ref_emb": torch.cat([second, first]), "indices_tuple": listed_pairs(labels, labels.repeat(2))}
    oracle = supcon_oracle.anchor_losses(second, **listed, num_views=2, contrast_mode="one")
    assert memory(second, labels).item() == pytest.approx(supcon_oracle.mean(oracle), abs=1e-5)


@pytest.mark.parametrize("loss_class", [losses.SupConLossOut, pml.TripletMarginLoss])
def test_a_batch_that_does_not_fit_does_not_enter_the_memory(loss_class):
    memory, (rows, labels) = new_memory(loss_class, size=7), STEPS[0]
    with pytest.raises(ValueError, match=r"`memory_size` to be at least the 8 rows of a batch that enter .* but got 7"):
        memory(rows, labels)
    with pytest.raises(ValueError, match=r"the width embedding_size=4, but got \(8, 3\)"):
        memory(rows[:, :3], labels)
    if loss_class is losses.SupConLossOut:
        with pytest.raises(TypeError, match=r"`labels` to be a torch\.Tensor, but got NoneType"):
            memory(rows[:4], None)
        with pytest.raises(ValueError, match="Expected no `ref_emb` with `positives_cap`"):
            new_memory(num_views=2, positives_cap=2)(rows, torch.arange(8) % 4)
    assert memory.queue_idx == 0


@pytest.mark.parametrize("loss_class", [losses.SupConLossOut, pml.TripletMarginLoss])
@pytest.mark.parametrize(
    ("mask", "error", "text"),
    [
        ([True] * 8, TypeError, r"a torch\.Tensor, but got list"),
        (torch.ones(8), ValueError, r"bool \(8,\), .* but got torch\.float32 \(8,\)"),
        (torch.arange(8), ValueError, r"bool \(8,\), .* but got torch\.int64 \(8,\)"),  # PML takes rows 0 to 7
        (torch.ones(3, dtype=torch.bool), ValueError, r"bool \(8,\), .* but got torch\.bool \(3,\)"),
        (torch.ones(8, dtype=torch.bool, device="meta"), ValueError, "have values"),
    ],
)
def test_a_mask_is_one_bool_for_each_row(loss_class, mask, error, text):
    memory = new_memory(loss_class)
    with pytest.raises(error, match=f"`enqueue_mask` to .*{text}"):
        memory(*STEPS[0], enqueue_mask=mask)
    assert memory.queue_idx == 0


def test_rows_of_a_mask_fit_into_the_memory():
    memory, mask = new_memory(size=7), torch.ones(8, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`memory_size` to be at least the 8 rows .* but got 7"):
        memory(*STEPS[0], enqueue_mask=mask)
    mask[0] = False
    pairs = (torch.zeros(1, dtype=torch.int64),) * 4
    with pytest.raises(ValueError, match="at most one of `indices_tuple` and `enqueue_mask`, but got both"):
        memory(*STEPS[0], indices_tuple=pairs, enqueue_mask=mask)
    memory(*STEPS[0], enqueue_mask=mask)
    assert memory.has_been_filled


def test_cross_batch_memory_stays_empty_when_nothing_enters():
    """PML's memory would count as filled, and contrast with rows of zeros."""
    memory = new_memory()
    memory(*STEPS[0], enqueue_mask=torch.zeros(8, dtype=torch.bool))
    memory(STEPS[0][0][:0], STEPS[0][1][:0])
    assert not memory.has_been_filled
    torch.testing.assert_close(
        value_and_gradient(memory, *STEPS[1]), value_and_gradient(pml_memory(), *STEPS[1]), **CLOSE
    )


@pytest.mark.parametrize(
    ("dtype", "miner"), [(torch.float32, None), (torch.float64, None), (torch.float64, miners.MultiSimilarityMiner())]
)
def test_cross_batch_memory_copies_and_states(dtype, miner):
    steps = [(rows.to(dtype) / 3, labels) for rows, labels in STEPS]  # not exact in float32
    for number in (1, 3):  # partly filled, and wrapped around
        memory, loaded = new_memory(miner=miner), new_memory(miner=miner)
        for step in steps[:number]:
            memory(*step)
        assert set(memory.state_dict()) == {"embedding_memory", "label_memory", "_extra_state"}
        loaded.load_state_dict(memory.state_dict())
        others = [loaded, copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))]
        for step in steps:
            expected = memory(*step)
            assert all(torch.equal(other(*step), expected) for other in others)


def test_cross_batch_memory_loads_a_state_of_pml():
    theirs, memory = pml_memory(), new_memory()
    theirs(*STEPS[0])
    with pytest.raises(RuntimeError, match="_extra_state"):
        memory.load_state_dict(theirs.state_dict())
    memory.load_state_dict(theirs.state_dict(), strict=False)
    assert memory.queue_idx == 0
    with pytest.raises(ValueError, match="memory of 20 rows, but got next row 20"):
        memory.load_state_dict(memory.state_dict() | {"_extra_state": torch.tensor([20, 1])})


@pytest.mark.parametrize("symmetric", [True, False])
def test_self_supervised_loss_equals_pml_with_supcon_loss(symmetric):
    one, other = STEPS[0][0], STEPS[1][0]
    theirs = pml.SelfSupervisedLoss(pml.SupConLoss(), symmetric=symmetric)
    for loss in (losses.SupConLossOut(), losses.SupConLossIn()):  # one positive each: the same
        ours = losses.SelfSupervisedLoss(loss, symmetric=symmetric)
        expected = value_and_gradient(theirs, one, other)
        torch.testing.assert_close(value_and_gradient(ours, one, other), expected, **CLOSE)
        assert torch.equal(ours(embeddings=one, ref_emb=other), ours(one, other))


def test_self_supervised_loss_with_options_that_need_the_views():
    one, other = STEPS[0][0], STEPS[1][0]
    loss = losses.SupConLossOut(num_views=2, contrast_mode="one", positives_cap=0)
    expected = losses.SupConLossOut(contrast_mode="one")(torch.stack([one, other], dim=1))
    torch.testing.assert_close(losses.SelfSupervisedLoss(loss)(one, other), expected)


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("loss", [
    losses.SupConLossOut(), losses.SupConLossIn(denominator="one_positive"), pml.NTXentLoss(), pml.TripletMarginLoss(),
], ids=lambda loss: type(loss).__name__)  # fmt: skip
def test_self_supervised_loss_of_any_number_of_views(loss, number):
    samples, wrapped = [rows.double() for rows, _ in STEPS[:number]], losses.SelfSupervisedLoss(loss)
    value, gradient = value_and_gradient(wrapped, torch.stack(samples, dim=1))
    expected = loss(torch.cat(samples), torch.arange(8).repeat(number))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(wrapped(*samples), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(value_and_gradient(wrapped, *samples)[1], gradient[:, 0])


@pytest.mark.parametrize("number", [2, 4])
def test_self_supervised_loss_of_the_first_view_against_the_rest(number):
    samples = [rows.double() for rows, _ in STEPS[:number]]
    labels = torch.arange(8)
    rest = {"ref_emb": torch.cat(samples[1:]), "ref_labels": labels.repeat(number - 1)}
    for summation, loss in (("out", losses.SupConLossOut()), ("in", losses.SupConLossIn(contrast_mode="one"))):
        wrapped = losses.SelfSupervisedLoss(loss, symmetric=False)
        oracle = supcon_oracle.anchor_losses(samples[0], labels, **rest, summation=summation)
        assert wrapped(*samples).item() == pytest.approx(supcon_oracle.mean(oracle), rel=1e-10)
        assert torch.equal(wrapped(torch.stack(samples, dim=1)), wrapped(*samples))
    theirs = pml.NTXentLoss()
    wrapped = losses.SelfSupervisedLoss(theirs, symmetric=False)
    assert torch.equal(wrapped(*samples), theirs(samples[0], labels, **rest))


def test_self_supervised_loss_needs_equal_views():
    wrapped, rows = losses.SelfSupervisedLoss(losses.SupConLossOut()), STEPS[0][0]
    for alone in (rows, rows[:, None]):
        with pytest.raises(ValueError, match="at least two views"):
            wrapped(alone)
    with pytest.raises(ValueError, match=r"shape of the first, \(8, 4\), but got \(7, 4\)"):
        wrapped(rows, rows, rows[:7])
    with pytest.raises(ValueError, match=r"`embeddings` to have shape \(N, D\), but got \(8, 2, 4\)"):
        wrapped(torch.stack([rows, rows], dim=1), rows)
    with pytest.raises(TypeError, match=r"`ref_emb` to be a torch\.Tensor, but got NoneType"):
        wrapped(rows, None, rows)
    with pytest.raises(ValueError, match=r"without `num_views` with `symmetric=False`.* but got num_views=2"):
        losses.SelfSupervisedLoss(losses.SupConLossOut(num_views=2), symmetric=False)


@pytest.mark.parametrize("symmetric", [True, False])
def test_self_supervised_loss_on_another_device(symmetric):
    """PML creates the labels on the CPU."""

    class SupConLossOut(losses.SupConLossOut):  # PML looks losses up by name
        def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels, num_views=None):
            used = [embeddings, labels, *(x for x in (ref_emb, ref_labels) if x is not None)]
            assert {x.device.type for x in used} == {"meta"}
            return {"loss": self.zero_loss()}  # the meta device has no values

    one, other = torch.randn(4, 3, device="meta"), torch.randn(4, 3, device="meta")
    assert losses.SelfSupervisedLoss(SupConLossOut(), symmetric=symmetric)(one, other).device.type == "meta"


@pytest.mark.parametrize(
    ("wrapper", "options"), [(losses.CrossBatchMemory, {"embedding_size": 4}), (losses.SelfSupervisedLoss, {})]
)
def test_wrappers_accept_their_supported_losses(wrapper, options):
    ours = {"SupConLossOut", "SupConLossIn"}
    assert set(wrapper.supported_losses()) - set(wrapper.__base__.supported_losses()) == ours
    wrapper(pml.TripletMarginLoss(), **options)
    with pytest.raises(TypeError, match=r"`loss` to be one of AngularLoss, .*, but got ArcFaceLoss"):
        wrapper(pml.ArcFaceLoss(3, 4), **options)


@pytest.mark.parametrize("name", ["CrossBatchMemory", "SelfSupervisedLoss"])
def test_pml_may_be_patched_with_our_wrappers(monkeypatch, name):
    """An existing pipeline takes our class by replacing the name in `pytorch_metric_learning.losses`."""
    import pytorch_metric_learning.losses

    ours = getattr(losses, name)
    monkeypatch.setattr(pytorch_metric_learning.losses, name, ours)
    assert {"SupConLossOut", "NTXentLoss"} <= set(ours.supported_losses())
    options = {"embedding_size": 4, "memory_size": 16} if name == "CrossBatchMemory" else {}
    ours(losses.SupConLossOut(), **options)


@pytest.mark.parametrize("miner", [None, miners.BatchHardMiner()], ids=["no miner", "miner"])
@pytest.mark.parametrize("inner", [pml.ContrastiveLoss(), losses.SupConLossOut()], ids=["pml", "own"])
class TestMemoryOfValues:
    def test_labels_of_any_integer_dtype(self, inner, miner):
        rows, labels = torch.randn(2, 6, 3), torch.arange(6) % 2
        found = []
        for dtype in (torch.int64, torch.int32, torch.uint8, torch.uint16, torch.uint32, torch.uint64):
            memory = losses.CrossBatchMemory(inner, 3, memory_size=20, miner=miner)
            found.append([memory(batch, labels.to(dtype)).item() for batch in rows])
        assert found == [found[0]] * len(found)

    def test_the_meta_device_has_none(self, inner, miner):
        memory = losses.CrossBatchMemory(inner, 3, memory_size=20, miner=miner)
        rows, labels = torch.randn(6, 3), torch.arange(6) % 2
        for name, given in (("embeddings", (rows.to("meta"), labels)), ("labels", (rows, labels.to("meta")))):
            with pytest.raises(ValueError, match=f"`{name}` to have values, but got a tensor on the meta device"):
                memory(*given)
        assert memory(rows, labels).isfinite()  # the memory is as before
