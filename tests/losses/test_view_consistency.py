"""`ViewConsistencyLoss`: PML's reducers, weights, the compiler, bad input."""

import pytest
import torch
from helpers.pretend_gpu import GPU, pretend_gpu
from pytorch_metric_learning import reducers

from pml_supcon.functional import view_consistency_loss
from pml_supcon.losses import ViewConsistencyLoss

GENERATOR = torch.Generator().manual_seed(0)
POINTS = 8 * torch.rand(6, 2, 4, 2, generator=GENERATOR)
GEOMETRY = torch.eye(2, 3) + 0.2 * torch.rand(6, 2, 2, 3, generator=GENERATOR)
WEIGHTS = torch.rand(6, 2, 4, generator=GENERATOR) < 0.5
WEIGHTS[3] = False
EACH = view_consistency_loss(POINTS, GEOMETRY, weights=WEIGHTS)


def test_the_mean_over_samples():
    assert ViewConsistencyLoss()(POINTS, GEOMETRY) == view_consistency_loss(POINTS, GEOMETRY).losses.mean()
    assert not EACH.valid.all()
    torch.testing.assert_close(ViewConsistencyLoss()(POINTS, GEOMETRY, WEIGHTS), EACH.losses[EACH.valid].mean())


def test_reducers_get_the_loss_of_each_sample():
    each = ViewConsistencyLoss(reducers.DoNothingReducer())(POINTS, GEOMETRY, WEIGHTS)["loss"]
    torch.testing.assert_close(each["losses"], EACH.losses[EACH.valid])
    assert torch.equal(each["indices"], EACH.valid.nonzero()[:, 0])
    low = EACH.losses.median().item()
    above = ViewConsistencyLoss(reducers.ThresholdReducer(low=low))(POINTS, GEOMETRY, WEIGHTS)
    torch.testing.assert_close(above, EACH.losses[EACH.losses > low].mean())


def test_points_in_space_by_angles():
    solid, angles = torch.cat([POINTS, POINTS[..., :1]], dim=-1), torch.tensor([[0.0, 90]]).expand(6, 2)
    assert ViewConsistencyLoss()(solid, angles) == view_consistency_loss(solid, angles).losses.mean()


def test_it_trains():
    leaf = POINTS.clone().requires_grad_()
    optimizer, loss = torch.optim.SGD([leaf], lr=1), ViewConsistencyLoss()
    before = loss(leaf, GEOMETRY).item()
    for _ in range(200):
        optimizer.zero_grad()
        loss(leaf, GEOMETRY).backward()
        optimizer.step()
    assert loss(leaf, GEOMETRY).item() < before / 10


def test_it_compiles_without_a_graph_break():
    compiled = torch.compile(ViewConsistencyLoss(), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(POINTS, GEOMETRY, WEIGHTS), ViewConsistencyLoss()(POINTS, GEOMETRY, WEIGHTS))


@pytest.mark.parametrize("home", [GPU, torch.device("cpu")], ids=["maps on the GPU", "maps on the CPU"])
def test_no_step_waits_for_a_gpu(monkeypatch, home):
    with pretend_gpu(monkeypatch):
        points = torch.empty(6, 2, 4, 2, device=GPU)
        maps = torch.eye(2, 3).repeat(6, 2, 1, 1) if home.type == "cpu" else torch.empty(6, 2, 2, 3, device=GPU)
        weights = torch.ones(6, 2, 4, device=home)
        assert ViewConsistencyLoss()(points, maps, weights).device == GPU


def test_bad_input():
    with pytest.raises(ValueError, match="Expected argument `reducer` without weights of classes"):
        ViewConsistencyLoss(reducers.ClassWeightedReducer(torch.ones(3)))
    with pytest.raises(
        TypeError, match="`reducer` to be a BaseReducer of pytorch-metric-learning or None, but got str"
    ):
        ViewConsistencyLoss("mean")
    with pytest.raises(ValueError, match=r"`geometry` of shape .* but geometry is missing: got None"):
        ViewConsistencyLoss()(POINTS, None)
