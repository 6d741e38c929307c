"""`torch.compile` of a model plus loss: no graph break, the same numbers."""

import pytest
import torch

from pml_supcon import losses
from pml_supcon.functional import supcon_loss
from pml_supcon.targets import Hierarchy, Kernel, LabelSets, SoftLabels, Target


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_same(model, step, compiled, *inputs):
    """Compare loss and gradients of a step and of its compiled form."""
    results = []
    for way in (step, compiled):
        model.zero_grad()
        loss = way(*inputs)
        loss.backward()
        results.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("options", [{}, {"summation": "in", "denominator": "one_positive"}, {"positives_cap": 2}])
def test_model_and_functional_compile_whole(options):
    model = torch.nn.Linear(6, 4)

    def step(rows, labels):
        return supcon_loss(model(rows), labels, num_views=2, **options).mean()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert_same(model, step, compiled, torch.randn(40, 6), torch.randint(0, 5, (20,)).repeat(2))


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_loss_module_compiles_whole(backend):
    model, loss = torch.nn.Linear(6, 4), losses.SupConLossOut(backend=backend)

    def step(rows, labels):
        return loss(model(rows), labels)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert_same(model, step, compiled, torch.randn(10, 3, 6), torch.randint(0, 4, (10,)))


class Signed(Target):
    def weights(self, anchors, rows):
        return (2 * anchors[:, None] - rows).clamp(min=0)


TARGETS = [
    (LabelSets(threshold=0.3), torch.rand(24, 4) < 0.4),
    (SoftLabels(normalization="count"), torch.rand(24, 4)),
    (SoftLabels(), torch.rand(24, 4)),
    (Hierarchy([1, 2]), torch.tensor([[0, 0], [0, 1], [1, 2]]).repeat(8, 1)),
    (Kernel(0.5), torch.randn(24)),
    (Signed(), torch.randn(24)),
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tiled", "reference"])
@pytest.mark.parametrize(("target", "labels"), TARGETS)
def test_each_target_compiles_whole(target, labels, backend):
    model, loss = torch.nn.Linear(6, 4), losses.SupConLossIn(target=target, backend=backend)

    def step(rows, labels):
        return loss(model(rows), labels) + supcon_loss(model(rows), labels, target=target, backend=backend).mean()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for number in (24, 12):
        assert_same(model, step, compiled, torch.randn(number, 6), labels[:number])


@pytest.mark.parametrize(("backend", "dynamic"), [("tiled", None), ("tiled", True), ("reference", True)])
def test_a_temperature_that_changes_compiles_whole(backend, dynamic):
    """From its second value on, the temperature is a symbol in the graph; with `dynamic=True` sizes are too."""
    model = torch.nn.Linear(6, 4)

    def step(rows, labels, temperature):
        return supcon_loss(model(rows), labels, temperature=temperature, backend=backend).mean()

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for number, temperature in ((10, 0.1), (10, 0.2), (12, 0.01)):  # the last needs a shift
        assert_same(model, step, compiled, torch.randn(number, 6), torch.randint(0, 3, (number,)), temperature)


def test_operators_keep_their_contract():
    """PyTorch checks schema, fake tensors and autograd registration of the tiled operators."""
    tiled_losses = torch.ops.pml_supcon.tiled_losses.default
    z = torch.nn.functional.normalize(torch.randn(12, 3), dim=1).requires_grad_()
    labels = torch.arange(12) // 3
    ids = torch.arange(12)
    arguments = (z, None, labels, labels, ids, ids, *[None] * 4, "out", "all", 0.0, False, False, False)
    torch.library.opcheck(tiled_losses, arguments)
    one_sided = (z.detach().requires_grad_(), torch.randn(7, 3), labels, labels[:7], *[None] * 6)
    torch.library.opcheck(tiled_losses, (*one_sided, "out", "negatives", 0.0, False, False, False))
    sizes = torch.full((12,), 3)
    torch.library.opcheck(
        tiled_losses, (z, None, labels, labels, ids, ids, *[None] * 3, sizes, "out", "all", 0.0, True, False, False)
    )
    references = torch.randn(7, 3, requires_grad=True)
    arguments = (z, references, labels, labels[:7], *[None] * 6, "in", "one_positive", 0.25, False, False, True)
    torch.library.opcheck(tiled_losses, arguments)
    target = LabelSets()
    sets = target.prepare(torch.rand(12, 3) < 0.5, torch.float32)
    for arguments in (
        (z, None, sets, sets, 0, target.handle, "out", "all", 0.0, False, False, False),
        (z, references, sets, sets[:7], None, target.handle, "in", "one_positive", 0.5, False, True, True),
    ):
        torch.library.opcheck(torch.ops.pml_supcon.tiled_weighted_losses.default, arguments)


@pytest.mark.parametrize("backend", ["tiled", "reference"])
@pytest.mark.parametrize(
    "options",
    [{}, {"summation": "in", "denominator": "negatives"}, {"num_views": 2, "contrast_mode": "one", "positives_cap": 2}],
)
def test_twelve_batch_sizes_are_one_graph(backend, options):
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph

    def step(rows, labels):
        return supcon_loss(rows, labels, backend=backend, **options).mean()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counted)
    for number in range(8, 32, 2):
        rows, labels = torch.randn(number, 5, requires_grad=True), (torch.arange(number // 2) % 3).repeat(2)
        torch.testing.assert_close(compiled(rows, labels), step(rows, labels))
    assert len(graphs) == 1


@pytest.mark.parametrize("loss", [losses.SupConLossOut(), losses.SupConLossIn()])
def test_an_exported_loss_is_exact_at_another_batch_size(loss):
    class WithLoss(torch.nn.Module):
        def forward(self, rows, labels):
            return loss(rows, labels)

    batch = torch.export.Dim("batch", min=4)
    example = torch.randn(12, 5), torch.arange(12) % 3
    exported = torch.export.export(WithLoss(), example, dynamic_shapes=({0: batch}, {0: batch}))
    for number in (12, 30):
        rows, labels = torch.randn(number, 5), torch.arange(number) % 4
        torch.testing.assert_close(exported.module()(rows, labels), loss(rows, labels))
