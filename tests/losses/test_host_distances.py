"""The losses with PML's distances: each equal to a dense computation, and the statistics that distances record."""

import pytest
import torch
import torch.nn.functional as F
from helpers.supcon_batches import random_rows
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners, reducers
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance, SNRDistance

from pml_supcon import losses

LOSSES = [losses.SupConLossOut, losses.SupConLossIn]
LABELS = torch.tensor([0, 0, 1, 1, 0, 2])  # the last anchor has no positive


@pytest.fixture
def rows():
    return random_rows(6, 4)


def similarity_matrices(rows):
    """Distances by their formulas: `(distance, similarity matrix)`."""
    unit, unit_1 = F.normalize(rows, dim=1), F.normalize(rows, p=1, dim=1)
    differences = unit[:, None] - unit
    return [
        (CosineSimilarity(), unit @ unit.T),
        (DotProductSimilarity(), unit @ unit.T),
        (DotProductSimilarity(normalize_embeddings=False), rows @ rows.T),
        (DotProductSimilarity(normalize_embeddings=False, p=1), rows @ rows.T),  # p is the norm's: not used
        (DotProductSimilarity(p=1), unit_1 @ unit_1.T),
        (DotProductSimilarity(power=2), (unit @ unit.T) ** 2),
        (LpDistance(), -(differences**2).sum(dim=2).sqrt()),
        (LpDistance(power=2), -(differences**2).sum(dim=2)),
        (LpDistance(p=1, normalize_embeddings=False), -(rows[:, None] - rows).abs().sum(dim=2)),
        (SNRDistance(), -differences.var(dim=2) / unit.var(dim=1)[:, None]),
        (RescaledCosine(), 4 * unit @ unit.T),
        (HalvedCosine(), 0.5 * unit @ unit.T),
    ]


class RescaledCosine(CosineSimilarity):
    """A distance of the user's own: rows of length 2."""

    def normalize(self, embeddings, dim=1, **kwargs):
        return 2 * super().normalize(embeddings, dim=dim, **kwargs)


class HalvedCosine(CosineSimilarity):
    """A distance of the user's own: half the cosine."""

    def forward(self, query_emb, ref_emb=None):
        return 0.5 * super().forward(query_emb, ref_emb)


@pytest.mark.parametrize("case", range(12))
@pytest.mark.parametrize("loss_class", LOSSES)
def test_distances(loss_class, case, rows):
    distance, s = similarity_matrices(rows)[case]
    others = ~torch.eye(6, dtype=torch.bool)
    positives = (LABELS[:, None] == LABELS) & others
    log_p = s / 0.5 - (s / 0.5).masked_fill(~others, -torch.inf).logsumexp(dim=1, keepdim=True)
    number = positives.sum(dim=1)
    if loss_class is losses.SupConLossOut:
        terms = -log_p.masked_fill(~positives, 0).sum(dim=1) / number
    else:
        terms = number.log() - log_p.masked_fill(~positives, -torch.inf).logsumexp(dim=1)
    assert loss_class(0.5, distance=distance)(rows, LABELS).item() == pytest.approx(terms[:5].mean().item(), abs=1e-6)


def test_a_distance_needs_the_reference_backend(rows):
    for distance in (LpDistance(), SNRDistance(), DotProductSimilarity(power=2)):
        auto, named = (
            losses.SupConLossOut(distance=distance, backend=backend)(rows, LABELS) for backend in ("auto", "reference")
        )
        assert torch.equal(auto, named)
        with pytest.raises(ValueError, match=r"backend='tiled' cannot do this: .*; backends that can: reference$"):
            losses.SupConLossOut(distance=distance, backend="tiled")(rows, LABELS)


def test_mined_pairs_on_both_backends(rows):
    mined = miners.BatchHardMiner()(rows, LABELS)
    tiled, dense = (losses.SupConLossOut(backend=backend)(rows, LABELS, mined) for backend in ("tiled", "reference"))
    torch.testing.assert_close(tiled, dense)


@pytest.mark.parametrize("distance", [CosineSimilarity, DotProductSimilarity, LpDistance])
def test_statistics_are_those_of_supcon_loss(distance, rows):
    ours, theirs = (
        loss_class(
            distance=distance(collect_stats=True),
            collect_stats=True,
            reducer=reducers.AvgNonZeroReducer(collect_stats=True),
        )
        for loss_class in (losses.SupConLossOut, pml.SupConLoss)
    )
    other = random_rows(4, 4)
    for options in ({}, {"ref_emb": other, "ref_labels": LABELS[:4]}):
        for loss in (ours, theirs):
            loss(rows, LABELS, **options)
        for norm in ("initial_avg_query_norm", "initial_avg_ref_norm", "final_avg_query_norm", "final_avg_ref_norm"):
            assert norm in ours.distance._record_these_stats
            assert getattr(ours.distance, norm) == pytest.approx(getattr(theirs.distance, norm))
            assert getattr(ours.distance, norm) > 0
        assert ours.reducer.num_past_filter == theirs.reducer.num_past_filter
    assert ours._record_these == theirs._record_these == ["temperature"]
