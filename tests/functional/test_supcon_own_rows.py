"""The Triton backend on several processes: real ones (gloo), in Triton's interpreter, against the definition."""

from functools import cache

import pytest
import torch
from helpers.process_groups import run_processes
from helpers.supcon_batches import NORMALISED_TOLERANCE, TOLERANCE, gradient_error, loss_error
from pytorch_metric_learning import regularizers
from torch import distributed as dist

from pml_supcon.functional import group_supcon_loss, supcon_loss
from pml_supcon.functional.supcon import triton
from pml_supcon.losses import GlobalBatchLoss, SupConLossOut

SIZES, WIDTH = [13, 0, 7], 5  # 40 rows in blocks of 32 x 16
PLAIN = {"summation": "out", "denominator": "all"}
#: Per case: options of the loss, and the dtype of the embeddings.
CASES = {
    "out": (PLAIN, torch.float32),
    "in": ({"summation": "in", "denominator": "one_positive"}, torch.float32),
    "negatives, scaled": ({"denominator": "negatives", "scale_by_temperature": True}, torch.float32),
    "cap": ({"positives_cap": 4}, torch.float32),
    "sharp, shifted": ({"temperature": 0.01}, torch.float32),
    "bfloat16": (PLAIN, torch.bfloat16),
    "float16": (PLAIN, torch.float16),
    "first view": ({"contrast_mode": "one"}, torch.float32),  # two passes, and a reduce-scatter
}
QUICK = ["in", "cap", "bfloat16"]
TWO = [13, 7]
#: Numbers of samples by rank, and cases.
RUNS = [
    *((TWO, name) for name in QUICK),
    *(pytest.param(SIZES, name, marks=pytest.mark.slow) for name in CASES),
]
pytestmark = pytest.mark.skipif(not triton.INSTALLED, reason="needs triton")


def batch(dtype):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(sum(SIZES), 2, WIDTH, generator=generator).to(dtype)
    return embeddings, torch.randint(0, 5, (sum(SIZES),), generator=generator)


def upstream_of(rank, losses):
    """Return the gradient that a process sends into the losses; they differ."""
    return torch.randn(len(losses), generator=torch.Generator().manual_seed(rank)).to(losses)


def work(rank, sizes):
    from pml_supcon.functional.supcon.triton.launch import Launches

    gradient, launched = Launches.gradient, []

    def counted(self, *arguments):
        launched.append("gradient")
        return gradient(self, *arguments)

    Launches.gradient = counted
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    results = {}
    for name in QUICK if len(sizes) == 2 else CASES:
        options, dtype = CASES[name]
        for form in ("shards", "replicated"):
            embeddings, labels = batch(dtype)
            own = slice(None) if form == "replicated" else mine
            own_embeddings = embeddings[own].requires_grad_()
            launched.clear()
            losses, valid = group_supcon_loss(
                own_embeddings, labels[own], group=dist.group.WORLD, replicated=form == "replicated", backend="triton",
                **options,
            )  # fmt: skip
            losses.backward(upstream_of(rank, losses))
            results[name, form] = losses.detach(), valid, own_embeddings.grad, launched.copy()
    embeddings, labels = (part[mine] for part in batch(torch.float32))
    embeddings.requires_grad_()
    regularized = SupConLossOut(embedding_regularizer=regularizers.LpRegularizer(), backend="triton")
    value = GlobalBatchLoss(regularized)(embeddings, labels)  # the wrapper gathers the rows
    value.backward()
    results["regularised"] = value.detach(), embeddings.grad / len(sizes)
    return results


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function from numbers of samples to the results by rank, which runs the processes once for each."""

    @cache
    def results(*sizes):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            patch.setenv("PYTHONWARNINGS", "ignore::RuntimeWarning")  # NumPy reports the infinities that kernels mask
            return run_processes(work, len(sizes), tmp_path_factory.mktemp("gloo"), sizes)

    return results


@pytest.mark.parametrize("form", ["shards", "replicated"])
@pytest.mark.parametrize(("sizes", "name"), RUNS)
def test_equals_the_definition(run, sizes, name, form):
    results = run(*sizes)
    options, dtype = CASES[name]
    embeddings, labels = batch(dtype)
    rows = embeddings.double().requires_grad_()
    right, right_valid = supcon_loss(rows, labels, backend="reference", **options)
    upstream = sum(upstream_of(rank, right) for rank in range(len(results)))
    right.backward(upstream)
    gradients = [gradient for _, _, gradient, _ in results_of(results, name, form)]
    gradient = torch.cat(gradients) if form == "shards" else torch.stack(gradients).float().sum(0)
    for losses, valid, own, launched in results_of(results, name, form):
        assert torch.equal(valid, right_valid)
        assert loss_error(losses, right.detach()) <= NORMALISED_TOLERANCE.get(dtype, TOLERANCE[dtype]["losses"])
        assert launched.count("gradient") == (2 if name == "first view" else min(1, len(own)))
    limit = NORMALISED_TOLERANCE.get(dtype, TOLERANCE[dtype]["gradients"])
    assert gradient_error(gradient.flatten(0, 1), rows.grad.flatten(0, 1), upstream) <= limit


def results_of(results, name, form):
    return [result[name, form] for result in results]


def test_losses_that_gather_the_rows(run):
    results = run(*TWO)
    embeddings, labels = batch(torch.float32)
    embeddings.requires_grad_()
    value = SupConLossOut(embedding_regularizer=regularizers.LpRegularizer())(embeddings, labels)
    value.backward()
    torch.testing.assert_close(
        torch.cat([gradient for _, gradient in (r["regularised"] for r in results)]), embeddings.grad
    )
    for result in results:
        torch.testing.assert_close(result["regularised"][0], value.detach())
