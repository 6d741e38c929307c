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
    """The loss of embeddings `inputs @ w` and its gradient for `w`, as a model's parameters have it."""
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
    for name, loss in LOSSES.items():
        for efficient in (False, True):
            wrapped = DistributedLossWrapper(loss, efficient=efficient)
            if name != "first view":
                results[name, "rows", efficient] = value_and_gradient(wrapped, rows, labels.repeat(2))
            if name != "pml" and not efficient:
                results[name, "views", efficient] = value_and_gradient(wrapped, views, labels)
    results["no labels"] = value_and_gradient(DistributedLossWrapper(LOSSES["ours"]), views)
    try:
        DistributedLossWrapper(LOSSES["ours"], efficient=True)(views @ WEIGHTS, labels)
    except ValueError as error:
        results["refused"] = str(error)
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two processes computed."""
    return run_processes(work, 2, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("efficient", [False, True])
def test_equals_supcon_loss_on_each_process(results, efficient):
    for result in results:
        ours, theirs = result["ours", "rows", efficient], result["pml", "rows", efficient]
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
        assert ours[1].abs().max() > 1e-3
    zero, one = (result["ours", "rows", efficient][1] for result in results)
    assert not torch.allclose(zero, one)


@pytest.mark.parametrize(
    ("name", "form"),  # rows of two processes, one after the other, are no longer view-major
    [("ours", "rows"), ("in", "rows"), ("ours", "views"), ("in", "views"), ("first view", "views")],
)
def test_two_processes_are_one_that_holds_the_whole_batch(results, name, form):
    value, gradient = value_and_gradient(LOSSES[name], views_of(slice(0, 6)), LABELS)
    came = [result[name, form, False] for result in results]
    for wrapped, _ in came:
        torch.testing.assert_close(wrapped, 2 * value)  # PML's wrapper reports W times the loss
    torch.testing.assert_close((came[0][1] + came[1][1]) / 2, gradient)  # what data-parallel averaging gives


def test_views_without_labels(results):
    value, gradient = value_and_gradient(LOSSES["ours"], views_of(slice(0, 6)))
    came = [result["no labels"] for result in results]
    torch.testing.assert_close(came[0][0], 2 * value)
    torch.testing.assert_close((came[0][1] + came[1][1]) / 2, gradient)


def test_the_efficient_wrapper_refuses_views(results):
    assert all("`ref_emb` to have shape (N, D)" in result["refused"] for result in results)


def test_one_process_alone():
    wrapped = DistributedLossWrapper(LOSSES["ours"])
    with pytest.warns(UserWarning, match="non-distributed"):
        loss = wrapped(INPUTS, LABELS.repeat(2))
    assert torch.equal(loss, LOSSES["ours"](INPUTS, LABELS.repeat(2)))
