"""The losses within PML: reducers, regularizers, miners, MultipleLosses, batches that have no loss."""

import warnings

import pytest
import torch
from helpers import supcon_oracle
from helpers.supcon_batches import BACKENDS, random_rows
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners, reducers
from pytorch_metric_learning.regularizers import LpRegularizer

from pml_supcon import losses

LOSSES = [losses.SupConLossOut, losses.SupConLossIn]
LABELS = torch.tensor([0, 0, 2, 1, 1, 0])  # the third anchor has no positive
ANCHORS = [0, 1, 3, 4, 5]
CUT = 2.5  # some anchors' losses are above, some below


def gradient(loss, rows):
    return torch.autograd.grad(loss, rows)[0]


@pytest.fixture
def rows():
    return random_rows(6, 4)


def oracle_terms(rows, labels=LABELS, summation="out", **options):
    terms = supcon_oracle.anchor_losses(rows, labels, summation=summation, **options)
    return torch.tensor([term for term in terms if term is not None], dtype=torch.float64)


class SpyReducer(reducers.MeanReducer):
    """A user's reducer, which keeps its arguments."""

    def element_reduction(self, losses, loss_indices, embeddings, labels):
        self.seen = losses.detach(), loss_indices, embeddings.shape, labels
        return super().element_reduction(losses)


@pytest.mark.parametrize("loss_class", LOSSES)
@pytest.mark.parametrize(
    ("reducer", "reduce"),
    [
        (None, torch.mean),
        (reducers.SumReducer(), torch.sum),
        (reducers.AvgNonZeroReducer(), torch.mean),
        (reducers.PerAnchorReducer(), torch.mean),
        (reducers.ThresholdReducer(low=CUT), lambda terms: terms[terms > CUT].mean()),
        (reducers.ThresholdReducer(low=1e6), lambda terms: torch.zeros((), dtype=terms.dtype)),
        (reducers.ClassWeightedReducer(torch.tensor([1.0, 3.0, 100.0])),
         lambda terms: (terms * torch.tensor([1, 1, 3, 3, 1])).mean()),
        (reducers.MultipleReducers({"loss": reducers.SumReducer()}), torch.sum),
        (reducers.MultipleReducers({}), torch.mean),
    ],
)  # fmt: skip
def test_reducers_get_the_valid_anchors(loss_class, reducer, reduce, rows):
    rows.requires_grad_()
    loss = loss_class(temperature=0.5, reducer=reducer)(rows, LABELS)
    terms = oracle_terms(rows, summation=loss_class.summation, temperature=0.5)
    assert 0 < (terms > CUT).sum() < len(terms)
    expected = reduce(terms)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)  # PML's weights are float32
    assert gradient(loss, rows).isfinite().all()


@pytest.mark.parametrize("loss_class", LOSSES)
def test_the_arguments_of_a_reducer(loss_class, rows):
    reducer = SpyReducer()
    loss = loss_class(reducer=reducer)
    loss(rows, LABELS)
    terms, indices, shape, labels = loss.reducer.seen  # PML copies the reducer
    torch.testing.assert_close(terms, oracle_terms(rows, summation=loss_class.summation))
    assert indices.tolist() == ANCHORS
    assert shape == (6, 4)
    assert torch.equal(labels, LABELS)
    views = rows.view(3, 2, 4)
    loss(views, torch.tensor([5, 6, 5]))  # view-major: rows 0..2 are the first view
    _, indices, shape, labels = loss.reducer.seen
    assert indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert shape == (6, 4)
    assert labels.tolist() == [5, 6, 5, 5, 6, 5]
    first = loss_class(reducer=reducer, contrast_mode="one")
    first(views)
    assert first.reducer.seen[1].tolist() == [0, 1, 2]
    assert first.reducer.seen[3] is None


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_class_weights_under_labels_of_any_integer_dtype(dtype, rows):
    loss = losses.SupConLossOut(reducer=reducers.ClassWeightedReducer(torch.tensor([1.0, 3.0, 100.0])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch reads uint8 as a mask, and warns
        assert loss(rows, LABELS.to(dtype)) == loss(rows, LABELS)


@pytest.mark.parametrize("reducer", [reducers.MeanReducer(), reducers.SumReducer()])
@pytest.mark.parametrize("form", ["(N, D)", "(B, V, D)"])
def test_embedding_regularizer(form, reducer, rows):
    regularizer = {"embedding_regularizer": LpRegularizer(reducer=reducer), "embedding_reg_weight": 0.25}
    embeddings, labels = (rows, LABELS) if form == "(N, D)" else (rows.view(3, 2, 4), torch.tensor([0, 1, 0]))
    embeddings.requires_grad_()
    ours = losses.SupConLossOut(reducer=reducer, **regularizer)(embeddings, labels)
    norms = embeddings.norm(dim=-1)
    norms = norms.sum() if isinstance(reducer, reducers.SumReducer) else norms.mean()
    expected = losses.SupConLossOut(reducer=reducer)(embeddings, labels) + 0.25 * norms
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradient(ours, embeddings), gradient(expected, embeddings))


def test_multiple_losses(rows):
    miner = miners.MultiSimilarityMiner()
    out, inside = losses.SupConLossOut(), losses.SupConLossIn()
    both = pml.MultipleLosses([out, inside], miners=[None, miner], weights=[1, 0.5])
    mined = miner(rows, LABELS)
    torch.testing.assert_close(both(rows, LABELS), out(rows, LABELS) + 0.5 * inside(rows, LABELS, mined))


@pytest.mark.parametrize("miner", [
    miners.MultiSimilarityMiner(),
    miners.TripletMarginMiner(margin=0.5),
    miners.BatchHardMiner(),
    miners.PairMarginMiner(pos_margin=0.4, neg_margin=0.9),
    miners.AngularMiner(angle=1),
])  # fmt: skip
@pytest.mark.parametrize("loss_class", LOSSES)
def test_miners(loss_class, miner, rows):
    mined = miner(rows, LABELS)
    assert sum(map(len, mined)) > 0
    oracle = supcon_oracle.anchor_losses(rows, indices_tuple=mined, summation=loss_class.summation)
    loss = loss_class()(rows, LABELS, mined)
    assert loss.item() == pytest.approx(supcon_oracle.mean(oracle), abs=1e-10)


def test_a_miner_that_selects_nothing(rows):
    rows.requires_grad_()
    mined = miners.TripletMarginMiner(margin=-10.0)(rows, LABELS)
    assert len(mined[0]) == 0
    for empty in (mined, tuple(torch.tensor([]) for _ in range(3))):  # some miners' empty tensors are float
        loss = losses.SupConLossOut()(rows, LABELS, empty)
        assert loss == 0
        assert torch.equal(gradient(loss, rows), torch.zeros_like(rows))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("denominator", ["all", "one_positive", "negatives"])
@pytest.mark.parametrize("reducer", [
    None,
    reducers.AvgNonZeroReducer(),
    reducers.ClassWeightedReducer(torch.ones(6)),
    reducers.MultipleReducers({"loss": reducers.SumReducer()}),
])  # fmt: skip
@pytest.mark.parametrize("shape", [(6, 4), (0, 4), (0, 2, 4)])
def test_no_anchor_left(shape, reducer, denominator, backend):
    embeddings = torch.randn(shape).requires_grad_()
    labels = torch.arange(len(embeddings))
    for loss_class in LOSSES:
        loss = loss_class(denominator=denominator, reducer=reducer, backend=backend)(embeddings, labels)
        assert loss.shape == ()
        assert loss.item() == 0
        assert torch.equal(gradient(loss, embeddings), torch.zeros(shape))


def test_no_anchor_left_leaves_the_regularizer(rows):
    loss = losses.SupConLossOut(embedding_regularizer=LpRegularizer())(rows, torch.arange(6))
    torch.testing.assert_close(loss, rows.norm(dim=1).mean())
