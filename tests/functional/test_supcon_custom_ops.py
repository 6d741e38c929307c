"""The door of the operators: nothing is imported in eager mode, and traces hold one custom op."""

import json
import subprocess
import sys

import pytest
import torch
from helpers.supcon_batches import random_rows
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from pml_supcon.functional import supcon_loss

PROBE = """
import json, sys
import torch
from pytorch_metric_learning import losses as pml_losses

def step(loss):
    rows, labels = torch.randn(40, 8, requires_grad=True), torch.arange(40) % 5
    torch.autograd.grad(loss(rows, labels), rows)

def loaded(names):
    return sorted(name for name in names if name.startswith(("torch._dynamo", "torch._inductor", "sympy")))

step(pml_losses.SupConLoss())
before = set(sys.modules)
from pml_supcon import losses
imported = loaded(set(sys.modules) - before)
losses = [losses.SupConLossOut(backend="tiled"), losses.SupConLossIn(), losses.SupConLossOut(denominator="negatives")]
before = set(sys.modules)
for loss in losses:
    step(loss)
print(json.dumps([imported, sorted(set(sys.modules) - before)]))
"""


def test_eager_mode_imports_no_compiler():
    run = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout) == [[], []]


def loss_of(rows, labels):
    return supcon_loss(rows, labels, backend="tiled").mean()


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_a_trace_holds_the_operator(tracing_mode):
    rows, labels = random_rows(12, 3), torch.arange(12) // 3
    trace = make_fx(loss_of, tracing_mode=tracing_mode)(rows, labels)
    assert torch.ops.pml_supcon.tiled_losses.default in [node.target for node in trace.graph.nodes]
    others = random_rows(12, 3)
    torch.testing.assert_close(trace(others, labels), loss_of(others, labels))


def test_fake_tensors_are_not_read():
    with FakeTensorMode() as mode:
        rows, labels = torch.randn(12, 3, requires_grad=True), torch.arange(12) // 3
        (gradient,) = torch.autograd.grad(loss_of(rows, labels), rows)
    assert mode is gradient.fake_mode
    assert gradient.shape == (12, 3)


def test_a_second_derivative_is_an_error():
    rows, labels = random_rows(6, 3).requires_grad_(), torch.arange(6) // 2
    (gradient,) = torch.autograd.grad(loss_of(rows, labels), rows, create_graph=True)
    with pytest.raises(RuntimeError, match=r"tiled backend is differentiable once.* needs backend='reference'"):
        gradient.square().sum().backward()


def test_gradients_have_the_strides_that_the_compiler_expects():
    """On the meta device the operator is its fake, from which the compiler generates code."""

    def gradients(device):
        column_major = torch.rand(3, 12, device=device).T
        labels, upstream, table = (torch.ones(*shape, device=device) for shape in ((12,), (12,), (5, 12)))
        options = [*[None] * 6, "out", "all", 0.0, False, False, False]
        arguments = upstream, table, True, True, column_major, column_major[::2], labels, labels[::2], *options
        return torch.ops.pml_supcon.tiled_gradient(*arguments)

    real, fake = gradients("cpu"), gradients("meta")
    assert [part.stride() for part in real] == [part.stride() for part in fake] == [(3, 1), (3, 1)]
