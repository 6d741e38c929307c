"""Shares of the gradient, compared with autograd of the dense losses, one pair at a time."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.reducers import SumReducer
from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_triplets_indices

from pml_supcon.functional import share_bins, supcon_loss
from pml_supcon.functional.gradient_shares import gradient_shares
from pml_supcon.functional.share_bins import binned_gradient_shares

LOSSES = ["supcon_out", "supcon_in", "triplet"]
TEMPERATURE, MARGIN = 0.2, 0.3


def batch(rows=14, *, width=5, seed=1, dtype=torch.float64):
    """Return rows of different lengths in uneven classes, the last row alone in its class, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 4 % 3
    labels[-1] = 9
    centres = torch.randn(10, width, generator=generator, dtype=dtype)
    rows = centres[labels] + torch.randn(rows, width, generator=generator, dtype=dtype)
    return rows * torch.linspace(0.5, 3, len(rows), dtype=dtype)[:, None], labels


def loss_of_anchor(i, rows, labels, loss):
    """Return the loss of anchor i by the reference backend, or by PML."""
    if loss != "triplet":
        options = {"temperature": TEMPERATURE, "summation": loss.removeprefix("supcon_"), "backend": "reference"}
        return float(supcon_loss(rows, labels, **options).losses[i])
    a, p, n = get_all_triplets_indices(labels)
    of_anchor = [indices[a == i] for indices in (a, p, n)]
    return float(TripletMarginLoss(MARGIN, distance=LpDistance(), reducer=SumReducer())(rows, None, of_anchor))


def contribution(i, j, embeddings, labels, loss):
    """Return the length of row i's gradient through its pair with row j, all other pairs detached, and the loss."""
    row = embeddings[i].clone().requires_grad_()
    cosine = F.cosine_similarity(row, embeddings, dim=1)
    through_j = torch.where(torch.arange(len(labels)) == j, cosine, cosine.detach())
    value = loss_of_cosines(i, through_j, labels, loss)
    (gradient,) = torch.autograd.grad(value, row)
    return float(gradient.norm()), float(value.detach())


def loss_of_cosines(i, cosine, labels, loss):
    """Compute the paper's equations for one anchor, row by row."""
    positives = [j for j in range(len(labels)) if j != i and labels[j] == labels[i]]
    negatives = [j for j in range(len(labels)) if labels[j] != labels[i]]
    if loss == "triplet":
        distance = (2 - 2 * cosine).clamp(min=0).sqrt()
        return sum((distance[p] - distance[n] + MARGIN).relu() for p in positives for n in negatives)
    s = cosine / TEMPERATURE
    denominator = sum(s[a].exp() for a in positives + negatives)
    if loss == "supcon_out":
        return -sum((s[p].exp() / denominator).log() for p in positives) / len(positives)
    return -(sum(s[p].exp() / denominator for p in positives) / len(positives)).log()


def shares(embeddings, labels, loss, **options):
    return gradient_shares(embeddings, labels, loss=loss, temperature=TEMPERATURE, margin=MARGIN, **options)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_contribution_equals_autograd_of_a_loss_that_equals_the_packages_or_pmls(loss):
    embeddings, labels = batch()
    found = shares(embeddings, labels, loss)
    for i in range(len(labels) - 1):
        expected = [0.0 if i == j else contribution(i, j, embeddings, labels, loss)[0] for j in range(len(labels))]
        assert found.magnitudes[i].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        value = contribution(i, 0, embeddings, labels, loss)[1]
        assert value == pytest.approx(loss_of_anchor(i, embeddings, labels, loss), rel=1e-9)
    assert (found.magnitudes[-1] == 0).all()  # alone in its class: no loss
    assert (found.magnitudes[:-1] > 0).any(dim=1).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_shares_sum_to_one_over_each_kind_and_do_not_depend_on_lengths(loss):
    embeddings, labels = batch()
    found = shares(embeddings, labels, loss)
    for kind in (found.positives, found.negatives):
        own = found.magnitudes * kind
        torch.testing.assert_close((found.shares * kind)[:-1], (own / own.sum(1, keepdim=True))[:-1])
        assert (found.shares * kind).sum(1)[:-1].tolist() == pytest.approx([1] * (len(labels) - 1))
    assert (found.shares[-1] == 0).all()
    torch.testing.assert_close(shares(F.normalize(embeddings), labels, loss).shares, found.shares)
    assert not (found.positives & found.negatives).any()
    assert not (found.positives | found.negatives).diagonal().any()


def test_a_triplet_whose_loss_is_exactly_0_has_no_gradient():
    """Place the positive of anchor 0 at distance 0, its negative at distance 1, the margin; no step rounds."""
    z = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    found = gradient_shares(z, labels, loss="triplet", margin=1.0)
    assert (found.magnitudes == 0).all()
    found = gradient_shares(z, labels, loss="triplet", margin=math.nextafter(1, 2))
    assert found.magnitudes[0].tolist() == pytest.approx([0, 1, math.sqrt(0.75)])


@pytest.mark.parametrize("loss", LOSSES)
def test_no_negatives_no_positives_and_equal_rows(loss):
    embeddings, _ = batch(6)
    found = shares(embeddings, torch.zeros(6, dtype=torch.int64), loss)
    assert not found.negatives.any()
    assert bool(found.shares.any()) == (loss == "supcon_out")  # the other losses have no gradient without negatives
    assert (shares(embeddings, torch.arange(6), loss).magnitudes == 0).all()
    twins = embeddings[[0, 0, 1, 1]]  # positives at distance 0, cosines of 1 up to rounding
    assert shares(twins, torch.tensor([0, 0, 1, 1]), loss).shares.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_low_precision_input_is_computed_in_float32(dtype, loss):
    low, labels = batch(dtype=dtype)
    found = shares(low, labels.to(torch.int16), loss)
    assert found.shares.dtype == torch.float32
    torch.testing.assert_close(found.shares.double(), shares(low.double(), labels, loss).shares, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("anchors", [slice(-2, None), slice(4, 4)])
def test_a_slice_of_anchors_gives_its_rows_of_all(anchors):
    embeddings, labels = batch()
    some, whole = shares(embeddings, labels, "supcon_in", anchors=anchors), shares(embeddings, labels, "supcon_in")
    for a, b in zip(some, whole, strict=True):
        torch.testing.assert_close(a, b[anchors])
    with pytest.raises(TypeError, match="`anchors` to be a slice or None, but got 3"):
        gradient_shares(embeddings, labels, anchors=3)


def bins_by_loops(found, bins):
    """Sum over anchors, one by one."""
    by_kind = []
    for kind, hardness, low in ((found.positives, 1 - found.cosine, 0.0), (found.negatives, found.cosine, -1.0)):
        share, even, count, mean, weighted_mean, anchors = np.zeros(bins), np.zeros(bins), np.zeros(bins), 0.0, 0.0, 0
        for i in range(len(kind)):
            h, shares = hardness[i][kind[i]].numpy(), found.shares[i][kind[i]].numpy()
            if not shares.any():
                continue
            anchors += 1
            count += np.histogram(h, bins, (low, low + 2))[0]
            even += np.histogram(h, bins, (low, low + 2))[0] / len(h)
            share += np.histogram(h, bins, (low, low + 2), weights=shares)[0]
            mean, weighted_mean = mean + h.mean(), weighted_mean + h @ shares
        by_kind.append((share, even, count, mean, weighted_mean, anchors))
    return by_kind


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk_size", [None, 1, 5])
def test_bins_equal_a_loop_over_pairs(loss, chunk_size):
    embeddings, labels = batch(30, seed=1)
    options = {"loss": loss, "temperature": TEMPERATURE, "margin": MARGIN}
    found = binned_gradient_shares(embeddings, labels, bins=7, chunk_size=chunk_size, **options)
    expected = bins_by_loops(gradient_shares(embeddings, labels, **options), bins=7)
    for sums, by_loops in zip(found, expected, strict=True):
        for field, right in zip(fields(sums), by_loops, strict=True):
            assert getattr(sums, field.name).numpy() == pytest.approx(right), field.name
        assert float(sums.share.sum()) == pytest.approx(int(sums.anchors))
        assert sums.anchors > 0


def test_opposite_and_equal_rows_fall_into_the_outer_bins():
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    positives, negatives = binned_gradient_shares(z, torch.tensor([0, 0, 1]), bins=4, loss="triplet", margin=3.0)
    assert positives.count.tolist() == [0, 0, 0, 0]  # opposite: no gradient along the sphere
    positives, negatives = binned_gradient_shares(z, torch.tensor([0, 1, 0]), bins=4, loss="triplet", margin=3.0)
    assert positives.count.tolist() == [2, 0, 0, 0]
    assert negatives.count.tolist() == [0, 0, 0, 0]
    assert gradient_shares(z, torch.tensor([0, 1, 1])).cosine.amin() == -1


def test_the_chunk_size_follows_from_the_bytes_of_a_matrix(monkeypatch):
    chunks = []

    def spy(*args, anchors, **options):
        chunks.append(len(range(*anchors.indices(30))))
        return gradient_shares(*args, anchors=anchors, **options)

    monkeypatch.setattr(share_bins, "gradient_shares", spy)
    monkeypatch.setattr(share_bins, "CHUNK_BYTES", 8 * 30 * 4)
    binned_gradient_shares(*batch(30))
    assert chunks == [4] * 7 + [2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "supcon_ou"}, "`loss` to be one of .* did you mean 'supcon_out'"),
        ({"temperature": 0.0}, "`temperature` to be above 0, but got 0.0"),
        ({"temperature": 5e-324}, "`temperature` to be at least 1.17.*e-38, but got 5e-324"),
        ({"margin": -0.1}, "`margin` to be at least 0, but got -0.1"),
        ({"embeddings": torch.ones(4, 2, 3)}, r"`embeddings` to have shape \(N, D\), but got \(4, 2, 3\)"),
        ({"embeddings": torch.tensor([1.0, 1, 0, math.inf])[:, None]}, "not zero, but got 2 of 4 .* first is row 2"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"`labels` to have shape \(4,\)"),
        ({"bins": 0}, "`bins` to be at least 1, but got 0"),
        ({"chunk_size": 0}, "`chunk_size` to be at least 1"),
    ],
)
def test_errors_give_the_expected_and_the_actual_value(change, message):
    valid = {"embeddings": torch.ones(4, 3), "labels": torch.tensor([0, 0, 1, 1])}
    with pytest.raises(ValueError, match=message):
        binned_gradient_shares(**(valid | change))
