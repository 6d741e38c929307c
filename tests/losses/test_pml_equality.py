"""Our losses beside PML's `SupConLoss` and `NTXentLoss`: equality, with PML's distances too, and each difference."""

import pytest
import torch
from helpers import supcon_oracle
from helpers.supcon_batches import BACKENDS, random_rows
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners, reducers
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance, SNRDistance

from pml_supcon import losses


def value_and_gradients(loss, rows, *args, **options):
    """Return the loss and its gradients for the rows and, if given, the references."""
    rows = rows.detach().requires_grad_()
    inputs = [rows]
    if "ref_emb" in options:
        options["ref_emb"] = options["ref_emb"].detach().requires_grad_()
        inputs.append(options["ref_emb"])
    value = loss(rows, *args, **options)
    return value.detach(), torch.autograd.grad(value, inputs)


def assert_equal(ours, theirs, *args, **options):
    actual, expected = (value_and_gradients(loss, *args, **options) for loss in (ours, theirs))
    assert expected[0] != 0, "nothing is compared"
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def batch(number=24, width=8, classes=5):
    return random_rows(number, width), torch.randint(0, classes, (number,))


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_supcon_loss(backend, temperature):
    rows, labels = batch()
    labels[0] = 99  # an anchor without a positive
    ours, theirs = losses.SupConLossOut(temperature, backend=backend), pml.SupConLoss(temperature)
    assert_equal(ours, theirs, rows, labels)
    assert_equal(ours, theirs, rows, labels, ref_emb=batch(30)[0], ref_labels=torch.randint(0, 7, (30,)))


@pytest.mark.parametrize("miner", [miners.MultiSimilarityMiner(), miners.TripletMarginMiner(margin=0.3)])
def test_equals_supcon_loss_over_mined_pairs(miner):
    rows, labels = batch()
    mined = miner(rows, labels)
    assert len(mined[0]) > 0
    assert_equal(losses.SupConLossOut(), pml.SupConLoss(), rows, labels, mined)
    refs, ref_labels = batch(30)
    mined = miner(rows, labels, refs, ref_labels)
    assert_equal(losses.SupConLossOut(), pml.SupConLoss(), rows, labels, mined, ref_emb=refs, ref_labels=ref_labels)


class RescaledCosine(CosineSimilarity):
    """A user's distance: rows of length 2."""

    def normalize(self, embeddings, dim=1, **kwargs):
        return 2 * super().normalize(embeddings, dim=dim, **kwargs)


class HalvedCosine(CosineSimilarity):
    """A user's distance: half the cosine."""

    def forward(self, query_emb, ref_emb=None):
        return 0.5 * super().forward(query_emb, ref_emb)


@pytest.mark.parametrize("distance", [
    LpDistance(),
    LpDistance(normalize_embeddings=False, p=1, power=2),
    SNRDistance(),
    DotProductSimilarity(),
    DotProductSimilarity(normalize_embeddings=False),
    DotProductSimilarity(normalize_embeddings=False, p=1),  # p is only for the norm: not used
    DotProductSimilarity(p=1),
    DotProductSimilarity(power=3),
    RescaledCosine(),
    HalvedCosine(),
])  # fmt: skip
def test_equals_supcon_loss_with_its_distances(distance):
    rows, labels = batch(16, 4, 3)
    ours, theirs = losses.SupConLossOut(0.5, distance=distance), pml.SupConLoss(0.5, distance=distance)
    assert_equal(ours, theirs, rows, labels)
    refs, ref_labels = batch(12, 4, 3)
    assert_equal(ours, theirs, rows, labels, ref_emb=refs, ref_labels=ref_labels)


@pytest.mark.parametrize("distance", [LpDistance(), DotProductSimilarity(power=2)])
def test_a_distance_needs_the_reference_backend(distance):
    rows, labels = batch()
    with pytest.raises(ValueError, match=r"backend='tiled' cannot do this: .*; backends that can: reference$"):
        losses.SupConLossOut(distance=distance, backend="tiled")(rows, labels)


@pytest.mark.parametrize("distance", [CosineSimilarity, LpDistance])
def test_distances_and_reducers_record_the_same_statistics(distance):
    rows, labels = batch(6, 4, 2)
    references = {"ref_emb": random_rows(4, 4), "ref_labels": labels[:4]}
    ours, theirs = (
        loss_class(
            distance=distance(collect_stats=True),
            collect_stats=True,
            reducer=reducers.AvgNonZeroReducer(collect_stats=True),
        )
        for loss_class in (losses.SupConLossOut, pml.SupConLoss)
    )
    for options in ({}, references):
        for loss in (ours, theirs):
            loss(rows, labels, **options)
        for norm in ("initial_avg_query_norm", "initial_avg_ref_norm", "final_avg_query_norm", "final_avg_ref_norm"):
            assert norm in ours.distance._record_these_stats
            assert getattr(ours.distance, norm) == pytest.approx(getattr(theirs.distance, norm))
            assert getattr(ours.distance, norm) > 0
        assert ours.reducer.num_past_filter == theirs.reducer.num_past_filter
    assert ours._record_these == theirs._record_these == ["temperature"]


def test_equals_ntxent_over_two_views_without_labels():
    rows = batch(20)[0]
    pair_labels = torch.arange(10).repeat(2)
    for denominator in ("all", "one_positive"):  # one positive each: the same
        ours = losses.SupConLossOut(0.2, denominator=denominator, num_views=2)
        assert_equal(lambda x, _, ours=ours: ours(x), pml.NTXentLoss(0.2), rows, pair_labels)
        inside = losses.SupConLossIn(0.2, denominator=denominator, num_views=2)
        assert_equal(lambda x, _, inside=inside: inside(x), pml.NTXentLoss(0.2), rows, pair_labels)


def test_ntxent_averages_over_pairs_and_we_over_anchors():
    ours, theirs = losses.SupConLossOut(0.2, denominator="one_positive"), pml.NTXentLoss(0.2)
    rows = batch(12)[0]
    assert_equal(ours, theirs, rows, torch.arange(12) // 3)  # classes of one size: no difference
    uneven = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 3])
    rows[:6] = rows[0] + 0.01 * rows[:6]  # the large class is an easy one
    assert abs(ours(rows, uneven) - theirs(rows, uneven)) > 0.05
    per_anchor = pml.NTXentLoss(0.2, reducer=reducers.PerAnchorReducer(reducers.AvgNonZeroReducer()))
    assert_equal(ours, per_anchor, rows, uneven)


def test_difference_a_batch_of_one_class():
    rows, labels = batch(6, 4)[0].double(), torch.zeros(6, dtype=torch.int64)
    assert pml.SupConLoss()(rows, labels) == 0
    for loss in (losses.SupConLossOut(), losses.SupConLossIn()):
        oracle = supcon_oracle.anchor_losses(rows, labels, summation=loss.summation)
        assert loss(rows, labels).item() == pytest.approx(supcon_oracle.mean(oracle), abs=1e-10)
        assert loss(rows, labels) > 0.5


def test_difference_a_row_of_zeros_has_the_gradient_0():
    rows, labels = batch()
    rows[0] = 0
    (ours, [gradient]), (theirs, [exploding]) = (
        value_and_gradients(loss, rows, labels) for loss in (losses.SupConLossOut(), pml.SupConLoss())
    )
    torch.testing.assert_close(ours, theirs)
    assert (gradient[0] == 0).all()
    assert exploding[0].abs().max() > 1e6
    torch.testing.assert_close(gradient[1:], exploding[1:])


def test_difference_anchors_whose_loss_is_zero_count_in_the_mean():
    rows = batch(4, 4)[0]
    # anchor 0 has one positive and no negative, so its loss is log(1); anchors 1 and 2 have losses
    pairs = tuple(map(torch.tensor, ([0, 1, 2], [1, 2, 1], [1, 1, 2], [0, 3, 0])))
    ours, theirs = losses.SupConLossOut()(rows, indices_tuple=pairs), pml.SupConLoss()(rows, indices_tuple=pairs)
    torch.testing.assert_close(ours * 3, theirs * 2)
    assert_equal(losses.SupConLossOut(reducer=reducers.AvgNonZeroReducer()), pml.SupConLoss(), rows, None, pairs)
