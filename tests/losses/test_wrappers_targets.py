"""Losses with a target inside wrappers, ours and PML's, and with PML's reducers."""

import copy
import pickle

import pytest
import torch
from helpers.supcon_batches import value_and_gradient
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners, reducers
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch.nn.functional import one_hot

from pml_supcon import losses
from pml_supcon.functional import supcon_loss
from pml_supcon.losses import global_batch
from pml_supcon.targets import Hierarchy, Kernel, LabelSets, SoftLabels, Target

N, D = 8, 4


class Near(Target):
    """A target of a user, which is no data class."""

    def __init__(self, width):
        self.width, self.table, self.function = width, torch.ones(2), len

    def weights(self, anchors, rows):
        return (anchors[:, None] - rows).abs() <= self.width


KINDS = {
    "sets": (LabelSets(), lambda n: torch.rand(n, 3) < 0.5),
    "shares": (SoftLabels(), lambda n: torch.rand(n, 3) + 0.1),
    "tree": (Hierarchy([1, 1]), lambda n: torch.stack([torch.arange(n) % 2, torch.arange(n) % 4], dim=1)),
    "numbers": (Kernel(0.5), lambda n: torch.randn(n, dtype=torch.float64)),
    "a user's": (Near(1), lambda n: torch.randint(0, 6, (n,))),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def step(kind):
    """Return a function that gives rows and labels of one step, the same at each call."""

    def of(number, rows=N):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            return torch.randn(rows, D, dtype=torch.float64), KINDS[kind][1](rows)

    return of


def loss_of(kind, **options):
    return losses.SupConLossOut(target=KINDS[kind][0], **options)


class TestCrossBatchMemory:
    def new(self, kind, size=20, **options):
        return losses.CrossBatchMemory(loss_of(kind, **options), D, size)

    def test_is_the_loss_against_the_batch_and_the_memory(self, kind, step):
        memory, rows, labels = self.new(kind), *step(0, 0)
        target = KINDS[kind][0]
        for number in range(5):  # wraps around
            embeddings, own = step(number)
            expected = value_and_gradient(
                lambda x: supcon_loss(
                    x, own, ref_emb=torch.cat([x.detach(), rows]), ref_labels=torch.cat([own, labels]),  # noqa: B023
                    ref_starts_with_batch=True, target=target, backend="reference",
                ).mean(),
                embeddings,
            )  # fmt: skip
            torch.testing.assert_close(value_and_gradient(memory, embeddings, own), expected, rtol=1e-10, atol=1e-12)
            assert memory.label_memory.dtype == own.dtype
            assert expected[0] > 0
            rows, labels = torch.cat([rows, embeddings])[-12:], torch.cat([labels, own])[-12:]

    def test_one_hot_labels_are_classes_to_the_last_bit(self):
        plain, rich = losses.CrossBatchMemory(losses.SupConLossOut(), D, 20), self.new("shares")
        for _ in range(4):
            rows, classes = torch.randn(N, D), torch.randint(0, 3, (N,))
            assert torch.equal(rich(rows, one_hot(classes, 3).float()), plain(rows, classes))

    def test_copies_and_states(self, kind, step):
        for number in (1, 3):  # partly filled, and wrapped around
            memory, loaded = self.new(kind), self.new(kind)
            for each in range(number):
                memory(*step(each))
            loaded.load_state_dict(memory.state_dict())
            others = [loaded, copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))]
            for each in range(3, 6):
                expected = memory(*step(each))
                assert all(torch.equal(other(*step(each)), expected) for other in others)

    def test_an_empty_batch_leaves_an_empty_memory(self, kind, step):
        memory, fresh = self.new(kind), self.new(kind)
        assert memory(*step(0, 0)) == 0
        assert torch.equal(memory(*step(1)), fresh(*step(1)))

    def test_pairs_are_refused_with_what_would_do(self):
        loss, rows, sets = loss_of("sets"), torch.randn(N, D), torch.ones(N, 3) > 0
        message = r"no `miner` with target=LabelSets\(.*its pairs would replace; the loss contrasts all rows of batch"
        with pytest.raises(ValueError, match=message):
            losses.CrossBatchMemory(loss, D, 20, miner=miners.BatchHardMiner())
        memory = losses.CrossBatchMemory(loss, D, 20)
        pairs = (torch.zeros(1, dtype=torch.int64),) * 4
        with pytest.raises(ValueError, match=r"no `indices_tuple` with target=LabelSets"):
            memory(rows, sets, pairs)
        with pytest.raises(ValueError, match=r"no `enqueue_mask` with .*; `QueueLoss\(loss, \.\.\.\).*keys=\.\.\."):
            memory(rows, sets, enqueue_mask=torch.arange(N) < 4)
        assert memory.queue_idx == 0

    def test_labels_that_do_not_fit(self):
        memory, rows = losses.CrossBatchMemory(loss_of("sets"), D, 20), torch.randn(N, D)
        memory(rows, torch.ones(N, 3) > 0)
        message = r"`labels` like those in the memory, \(8, 3\) torch.bool, but got \(8, 2\) torch.bool"
        with pytest.raises(ValueError, match=message):
            memory(rows, torch.ones(N, 2) > 0)
        with pytest.raises(ValueError, match=r"shape \(8, C\)"):
            memory(rows, torch.arange(N))
        with pytest.raises(RuntimeError, match=r"state with class labels, torch\.int64, but got labels"):
            losses.CrossBatchMemory(losses.SupConLossOut(), D, 20).load_state_dict(memory.state_dict())
        assert memory.queue_idx == N


def test_self_supervised_loss_has_no_labels_for_a_target():
    message = r"without `target`, since each sample is its own class here, but got target=Kernel\(sigma=0.5"
    with pytest.raises(ValueError, match=message):
        losses.SelfSupervisedLoss(loss_of("numbers"))
    wrapped = losses.SelfSupervisedLoss(losses.SupConLossOut())
    wrapped.loss.target = Kernel(0.5)
    with pytest.raises(ValueError, match=message):
        wrapped(*torch.randn(2, N, D))


class TestGlobalBatchLoss:
    def test_views_and_rows_in_any_layout(self, kind, step):
        rows, labels = step(0)
        views, loss = torch.stack([rows, step(1)[0]], dim=1), loss_of(kind)
        expected = loss(views, labels)
        by_view, repeated = torch.cat(views.unbind(1)), torch.cat([labels, labels])
        assert torch.equal(losses.GlobalBatchLoss(loss)(views, labels), expected)
        assert torch.equal(losses.GlobalBatchLoss(loss)(by_view, repeated), expected)
        known = losses.GlobalBatchLoss(loss_of(kind, contrast_mode="one"), num_views=2)  # the wrapper splits the rows
        assert torch.equal(known(by_view, repeated), loss_of(kind, contrast_mode="one")(views, labels))
        several = losses.GlobalBatchLoss(pml.MultipleLosses([loss]))  # PML's takes no views
        assert torch.equal(several(views, labels), expected)

    def test_references(self, kind, step):
        (rows, labels), (others, ref_labels) = step(0), step(1)
        batch = torch.cat([rows, rows]), torch.cat([labels, labels])
        wrapped, given = (
            losses.GlobalBatchLoss(loss_of(kind), num_views=2),
            {"ref_emb": others, "ref_labels": ref_labels},
        )
        assert torch.equal(wrapped(*batch, **given), loss_of(kind)(*batch, **given))

    def test_labels_differ_between_views(self):
        loss = losses.GlobalBatchLoss(loss_of("sets"), num_views=2)
        with pytest.raises(ValueError, match="repeat the labels of the first view"):
            loss(torch.randn(4, D), torch.eye(4) > 0)

    def test_a_miner_is_refused(self):
        with pytest.raises(ValueError, match=r"no `miner` with target=LabelSets\(.*without it"):
            losses.GlobalBatchLoss(loss_of("sets"), miner=miners.BatchHardMiner())
        loss = losses.GlobalBatchLoss(losses.SupConLossOut(), miner=miners.BatchHardMiner())
        loss.loss.target = LabelSets()
        with pytest.raises(ValueError, match="no `miner` with target"):
            loss(torch.randn(4, D), torch.ones(4, 3) > 0)

    def test_the_description_of_a_loss_names_its_target(self):
        found = global_batch.describe(losses.QueueLoss(loss_of("tree"), D, 20))
        assert "target=Hierarchy(level_weights=(1.0, 1.0))" in found
        assert "target=Near(width=1)" in global_batch.describe(loss_of("a user's"))
        assert " at 0x" not in repr(Near(1))
        assert "target=None" in global_batch.describe(losses.SupConLossOut())


REDUCERS = {
    "mean": (reducers.MeanReducer, lambda x: x.mean()),
    "divisor": (reducers.DivisorReducer, lambda x: x.mean()),
    "nonzero": (reducers.AvgNonZeroReducer, lambda x: x[x > 0].mean()),
    "sum": (reducers.SumReducer, lambda x: x.sum()),
    "threshold": (lambda: reducers.ThresholdReducer(low=1.0), lambda x: x[x > 1].mean()),
    "per anchor": (reducers.PerAnchorReducer, lambda x: x.mean()),
    "multiple": (lambda: reducers.MultipleReducers({"loss": reducers.SumReducer()}), lambda x: x.sum()),
}


@pytest.mark.parametrize("name", REDUCERS)
def test_reducers_get_the_losses_of_valid_anchors(kind, step, name):
    new, expected = REDUCERS[name]
    rows, labels = step(0)
    terms = supcon_loss(rows, labels, target=KINDS[kind][0])
    found = loss_of(kind, reducer=new())(rows, labels)
    torch.testing.assert_close(found, expected(terms.losses[terms.valid]))


def test_the_divisor_counts_valid_anchors():
    rows, sets = torch.randn(4, D), torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1]])  # the last has no positive
    found = loss_of("sets", reducer=reducers.DivisorReducer())(rows, sets)
    torch.testing.assert_close(found, loss_of("sets")(rows, sets))


def test_a_reducer_without_a_reduction(kind, step):
    rows, labels = step(0)
    found = loss_of(kind, reducer=reducers.DoNothingReducer())(rows, labels)["loss"]
    terms = supcon_loss(rows, labels, target=KINDS[kind][0])
    assert torch.equal(found["losses"], terms.losses[terms.valid])


def test_class_weights_need_classes():
    reducer = reducers.ClassWeightedReducer(torch.ones(6))
    message = r"class labels with a ClassWeightedReducer, .* but got labels of shape \(8, 3\)"
    with pytest.raises(ValueError, match=message):
        loss_of("sets", reducer=reducer)(torch.randn(N, D), torch.ones(N, 3) > 0)
    with pytest.raises(ValueError, match=r"but got labels torch\.float64"):
        loss_of("numbers", reducer=reducer)(torch.randn(N, D), torch.randn(N, dtype=torch.float64))
    reducer = reducers.MultipleReducers({"loss": reducer})
    with pytest.raises(ValueError, match="class labels with a ClassWeightedReducer"):
        loss_of("shares", reducer=reducer)(torch.randn(N, D), torch.ones(N, 3))


def test_multiple_losses_and_pmls_distributed_wrapper_pass_labels_on(kind, step):
    rows, labels = step(0)
    one, other = loss_of(kind), losses.SupConLossIn(target=KINDS[kind][0])
    both = pml.MultipleLosses([one, other], weights=[1, 0.5])
    torch.testing.assert_close(both(rows, labels), one(rows, labels) + 0.5 * other(rows, labels))
    with pytest.warns(UserWarning, match="non-distributed"):
        assert torch.equal(DistributedLossWrapper(one)(rows, labels), one(rows, labels))


def test_a_loss_of_classes_beside_a_target_says_so():
    both = pml.MultipleLosses([loss_of("sets"), losses.SupConLossOut()])
    with pytest.raises(TypeError, match=r"hold integers, but got torch\.bool; a loss with the target"):
        both(torch.randn(N, D), torch.ones(N, 3) > 0)
