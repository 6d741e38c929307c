"""Tensors without dense values, and the functions that refuse them by the argument's name."""

import numpy as np
import pytest
import torch

from pml_supcon import functional, losses, metrics, miners, samplers, search, views
from pml_supcon._tensors import check_dense

ROWS, LABELS = torch.eye(4), torch.tensor([0, 0, 1, 1])
MASKS = torch.zeros(1, 4, 4, dtype=torch.long)
VIEWS = ROWS[:, None].repeat(1, 2, 1)


def neighbours_loss():
    return losses.NearestNeighbourLoss(losses.SupConLossOut(), 4, 8)


BAD = {
    "sparse": lambda x: x.to_sparse(),
    "csr": lambda x: x.float().reshape(len(x), -1).to_sparse_csr(),
    "mkldnn": lambda x: x.float().to_mkldnn(),
    "quantised": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
    "nested": lambda x: torch.nested.nested_tensor([x.float()]),
    "complex": lambda x: x.to(torch.complex64),
    "meta": lambda x: x.to("meta"),
}
CALLS = {
    "embeddings": {
        "supcon_loss": lambda x: functional.supcon_loss(x, LABELS),
        "SupConLossOut": lambda x: losses.SupConLossOut()(x, LABELS),
        "RankNContrastLoss": lambda x: losses.RankNContrastLoss()(x, LABELS),
        "RelationDistillation": lambda x: losses.RelationDistillation()(x, ROWS),
        "QueueLoss": lambda x: losses.QueueLoss(losses.SupConLossIn(), 4, 8)(x, LABELS),
        "GlobalBatchLoss": lambda x: losses.GlobalBatchLoss(losses.SupConLossOut())(x, LABELS),
        "OnlineHardExampleMiner": lambda x: miners.OnlineHardExampleMiner()(x, LABELS),
        "CappedPositivesMiner": lambda x: miners.CappedPositivesMiner(1)(x, LABELS),
        "clustering_metrics": lambda x: metrics.clustering_metrics(x, LABELS),
        "hard_mining_curve": lambda x: metrics.hard_mining_curve(x, LABELS),
    },
    "predictions": {"NearestNeighbourLoss": lambda x: neighbours_loss()(x, projections=VIEWS)},
    "projections": {"NearestNeighbourLoss": lambda x: neighbours_loss()(VIEWS, projections=x)},
    "labels": {
        "supcon_loss": lambda x: functional.supcon_loss(ROWS, x),
        "RankNContrastLoss": lambda x: losses.RankNContrastLoss()(ROWS, x),
        "QueueLoss": lambda x: losses.QueueLoss(losses.SupConLossIn(), 4, 8)(ROWS, x),
        "CappedPositivesMiner": lambda x: miners.CappedPositivesMiner(1)(ROWS, x),
        "MultiViewBatchSampler": lambda x: samplers.MultiViewBatchSampler(x, 2),
        "majority_share": metrics.majority_share,
        "fit_linear_probe": lambda x: metrics.fit_linear_probe(ROWS, x),
    },
    "past_embeddings": {"RelationDistillation": lambda x: losses.RelationDistillation()(ROWS, x)},
    "query": {
        "retrieval_metrics": lambda x: metrics.retrieval_metrics(x, LABELS, ROWS, LABELS),
        "index_recall": lambda x: search.index_recall(x, ROWS, index="exact", k=(1,)),
    },
    "points": {
        "view_consistency_loss": lambda x: functional.view_consistency_loss(x, torch.eye(2, 3).expand(4, 2, 2, 3)),
        "map_points": lambda x: views.map_points(x, torch.eye(2, 3)),
    },
    "features": {
        "mask_prototype_loss": lambda x: functional.mask_prototype_loss(x, MASKS),
        "PixelSupConLoss": lambda x: losses.PixelSupConLoss(losses.SupConLossOut())(x, MASKS),
    },
    "masks": {
        "draw_pixels": lambda x: functional.draw_pixels(x, 2),
        "MaskPrototypeLoss": lambda x: losses.MaskPrototypeLoss()(torch.ones(1, 2, 4, 4), x),
    },
    "images": {"Sobel": lambda x: views.Sobel()(x, LABELS)},
}
GIVE_SHAPES = {"supcon_loss", "SupConLossOut", "GlobalBatchLoss"}  # for embeddings on the meta device


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(("name", "function"), [(name, each) for name, calls in CALLS.items() for each in calls])
def test_tensors_without_dense_values_are_refused_by_name(kind, name, function):
    bad = BAD[kind](LABELS if name == "labels" else ROWS)
    if bad.is_meta and name == "embeddings" and function in GIVE_SHAPES:
        value = CALLS[name][function](bad)
        assert (value.mean() if function == "supcon_loss" else value).is_meta
        return
    with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
        CALLS[name][function](bad)


def test_the_meta_device_is_accepted_where_no_value_is_needed():
    check_dense("x", ROWS.to("meta"), values=False)
    assert views.flatten_views(torch.empty(2, 3, 4, device="meta")).shape == (6, 4)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[::-1].copy()[::-1],
        np.asfortranarray,
        lambda x: x.astype(x.dtype.newbyteorder(">")),
        lambda x: x.astype(np.longdouble) if x.dtype.kind == "f" else x,
    ],
    ids=["reversed", "fortran", "other byte order", "long double"],
)
def test_arrays_of_any_layout_give_the_same_scores(change):
    rows, labels = np.random.default_rng(0).normal(size=(12, 3)), np.arange(12) % 3
    for score in (metrics.hard_mining_curve, metrics.clustering_metrics):
        assert score(change(rows), change(labels)) == score(rows, labels)


def test_very_large_values_are_clustered():
    rows = np.repeat(np.eye(3) * 1e30, 4, axis=0)
    assert metrics.clustering_metrics(rows, np.repeat(np.arange(3), 4)) == {"nmi": 1.0, "ami": 1.0}
