"""`RankNContrastLoss` as a PML loss: reducers, distances, references, statistics, the compiler, errors."""

import copy
import pickle

import pytest
import torch
from pytorch_metric_learning import distances, reducers, regularizers

from pml_supcon.functional import rank_n_contrast_loss
from pml_supcon.losses import GlobalBatchLoss, RankNContrastLoss

ROWS = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
AGES = torch.tensor([20.0, 20, 35, 41, 60, 60, 62, 18, 90])
POSES = torch.stack([AGES, AGES.flip(0)], dim=1)


@pytest.mark.parametrize("labels", [AGES, AGES.long(), POSES])
def test_is_the_mean_over_anchors(labels):
    expected = rank_n_contrast_loss(ROWS, labels).losses
    torch.testing.assert_close(RankNContrastLoss()(ROWS, labels), expected.mean())
    assert (
        RankNContrastLoss(temperature=0.5)(ROWS, labels) == rank_n_contrast_loss(ROWS, labels, temperature=0.5).mean()
    )
    given = {"ref_emb": ROWS[:4].flip(1), "ref_labels": labels[:4]}
    assert RankNContrastLoss()(ROWS, labels, **given) == rank_n_contrast_loss(ROWS, labels, **given).mean()
    views = torch.stack([ROWS, ROWS.flip(1)], dim=1)
    assert RankNContrastLoss()(views, labels) == rank_n_contrast_loss(views, labels).mean()


def test_reducers_get_the_loss_of_each_anchor():
    expected = rank_n_contrast_loss(ROWS, AGES).losses
    each = RankNContrastLoss(reducer=reducers.DoNothingReducer())(ROWS, AGES)["loss"]
    torch.testing.assert_close(each["losses"], expected)
    assert each["indices"].tolist() == list(range(9))
    low = float(expected.median())
    above = RankNContrastLoss(reducer=reducers.ThresholdReducer(low=low))(ROWS, AGES)
    torch.testing.assert_close(above, expected[expected > low].mean())


def test_distances():
    s = torch.nn.functional.normalize(ROWS, dim=1) @ torch.nn.functional.normalize(ROWS, dim=1).T
    given = {
        distances.LpDistance(normalize_embeddings=False): -(ROWS[:, None] - ROWS).norm(dim=-1),
        distances.LpDistance(normalize_embeddings=False, p=1): -(ROWS[:, None] - ROWS).abs().sum(dim=-1),
        distances.LpDistance(normalize_embeddings=False, power=2): -(ROWS[:, None] - ROWS).square().sum(dim=-1),
        distances.LpDistance(): -(2 - 2 * s).clamp(min=0).sqrt(),
        distances.CosineSimilarity(): s,
    }
    for distance, similarities in given.items():
        expected = rank_n_contrast_loss(ROWS, AGES, similarity=lambda *_, s=similarities: s).mean()
        torch.testing.assert_close(RankNContrastLoss(distance=distance)(ROWS, AGES), expected, rtol=1e-6, atol=0)


def test_statistics_and_regularizers():
    loss = RankNContrastLoss(
        collect_stats=True,
        distance=distances.LpDistance(normalize_embeddings=False, collect_stats=True),
        embedding_regularizer=regularizers.LpRegularizer(),
        embedding_reg_weight=0.1,
    )
    torch.testing.assert_close(loss(ROWS, AGES), RankNContrastLoss()(ROWS, AGES) + 0.1 * ROWS.norm(dim=1).mean())
    assert loss.distance.initial_avg_query_norm == pytest.approx(ROWS.norm(dim=1).mean().item())
    assert "temperature" in loss._record_these


def test_copies_and_the_compiler():
    loss, leaf = RankNContrastLoss(temperature=1.5), ROWS.clone().requires_grad_()
    expected = loss(leaf, AGES)
    gradient = torch.autograd.grad(expected, leaf)[0]
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), torch.compile(loss, backend="eager")):
        value = other(leaf, AGES)
        assert value == expected
        assert torch.equal(torch.autograd.grad(value, leaf)[0], gradient)


def test_global_batch_loss_on_one_process():
    views = torch.stack([ROWS, ROWS.flip(1)], dim=1)
    rows = views.transpose(0, 1).flatten(0, 1)
    for labels in (AGES, POSES, AGES.long()):
        expected = RankNContrastLoss()(views, labels)
        assert GlobalBatchLoss(RankNContrastLoss())(views, labels) == expected
        assert (
            GlobalBatchLoss(RankNContrastLoss(), num_views=2)(rows, labels.repeat(2, *[1] * (labels.ndim - 1)))
            == expected
        )


class Learned(distances.LpDistance):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))


def test_invalid_arguments():
    with pytest.raises(ValueError, match="`temperature` to be above 0, but got -1"):
        RankNContrastLoss(-1)
    with pytest.raises(ValueError, match="Expected class labels with a ClassWeightedReducer"):
        RankNContrastLoss(reducer=reducers.ClassWeightedReducer(torch.ones(3)))(ROWS, AGES)
    with pytest.raises(TypeError, match="Expected argument `distance` without parameters, but got Learned"):
        RankNContrastLoss(distance=Learned())
    with pytest.raises(
        ValueError, match="Expected no `indices_tuple` with RankNContrastLoss: every row ranks all others"
    ):
        RankNContrastLoss()(ROWS, AGES, (torch.arange(2),) * 3)
    with pytest.raises(ValueError, match=r"`labels` to hold finite numbers .*, but got \[nan\] in row 0"):
        RankNContrastLoss()(ROWS, AGES * float("nan"))
    with pytest.raises(ValueError, match="Expected no `miner` with RankNContrastLoss, which takes no pairs"):
        GlobalBatchLoss(RankNContrastLoss(), miner=torch.nn.Identity())
    with pytest.raises(TypeError, match=r"`labels` to hold integers or floating point, but got torch\.bool"):
        GlobalBatchLoss(RankNContrastLoss())(ROWS, AGES > 1)
