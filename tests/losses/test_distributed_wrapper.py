"""PML's `DistributedLossWrapper` around our losses, in two real processes (gloo), gradients included."""

import pytest
import torch
from helpers.process_groups import run_processes
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from pml_supcon import losses

generator = torch.Generator().manual_seed(1)
INPUTS = torch.randn(12, 5, dtype=torch.float64, generator=generator)  # six samples, two views each
WEIGHTS = torch.randn(5, 3, dtype=torch.float64, generator=generator)
LABELS = torch.tensor([0, 1, 0, 1, 1, 2])  # samples 0..2 on one process, 3..5 on the other: classes on both
LOSSES = {
    "ours": losses.SupConLossOut(),
    "in": losses.SupConLossIn(),
    "first view": losses.SupConLossOut(contrast_mode="one", denominator="one_positive"),
    "pml": pml.SupConLoss(),
}


def value_and_gradient(loss, inputs, *labels):
    """Return the loss of embeddings `inputs @ w` and its gradient for `w`."""
    weights = WEIGHTS.clone().requires_grad_()
    value = loss(inputs @ weights, *labels)
    return value.detach(), torch.autograd.grad(value, weights)[0]


def views_of(samples):
    return torch.stack([INPUTS[:6][samples], INPUTS[6:][samples]], dim=1)


def work(rank):
    samples = slice(3 * rank, 3 * rank + 3)
    views, labels = views_of(samples), LABELS[samples]
    rows = views.transpose(0, 1).flatten(0, 1)
    results = {}
    for efficient in (False, True):
        for name in ("ours", "in", "pml"):
            wrapped = DistributedLossWrapper(LOSSES[name], efficient=efficient)
            results[name, "rows", efficient] = value_and_gradient(wrapped, rows, labels.repeat(2))
    for name in ("ours", "in", "first view"):
        results[name, "views"] = value_and_gradient(DistributedLossWrapper(LOSSES[name]), views, labels)
    results["ours", "no labels"] = value_and_gradient(DistributedLossWrapper(LOSSES["ours"]), views)
    with pytest.raises(ValueError, match=r"`ref_emb` to have shape \(N, D\)"):
        DistributedLossWrapper(LOSSES["ours"], efficient=True)(views @ WEIGHTS, labels)
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return the results of two processes, by rank."""
    return run_processes(work, 2, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("efficient", [False, True])
def test_equals_supcon_loss_on_each_process(results, efficient):
    for result in results:
        ours, theirs = result["ours", "rows", efficient], result["pml", "rows", efficient]
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
        assert ours[1].abs().max() > 1e-3
    zero, one = (result["ours", "rows", efficient][1] for result in results)
    assert not torch.allclose(zero, one)


@pytest.mark.parametrize("case", [  # rows of two processes, concatenated, are no longer view-major
    ("ours", "rows", False), ("in", "rows", False), ("ours", "views"), ("in", "views"), ("first view", "views"),
    ("ours", "no labels"),
])  # fmt: skip
def test_two_processes_are_one_with_the_whole_batch(results, case):
    labels = [] if "no labels" in case else [LABELS]
    value, gradient = value_and_gradient(LOSSES[case[0]], views_of(slice(0, 6)), *labels)
    (value_0, gradient_0), (value_1, gradient_1) = (result[case] for result in results)
    for wrapped in (value_0, value_1):
        torch.testing.assert_close(wrapped, 2 * value)  # PML's wrapper reports W times the loss
    torch.testing.assert_close((gradient_0 + gradient_1) / 2, gradient)  # the average of data parallelism
