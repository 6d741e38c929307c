"""The backends of `supcon_loss` compared on odd shapes and at tile borders, and the choice among them."""

import pytest
import torch
from helpers.supcon_batches import (
    BACKENDS,
    OPTION_NAMES,
    OPTIONS,
    assert_gradients_equal,
    gradient_error,
    label_kinds,
    loss_and_gradient,
    loss_error,
    problem_of,
    random_rows,
)

from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon import dense, tiled, upper_triangle
from pml_supcon.functional.supcon.backends import choose_backend
from pml_supcon.functional.supcon.options import SupConOptions
from pml_supcon.functional.supcon.problem import build_problem, check_batch
from pml_supcon.functional.supcon.tiled import layout, operator
from pml_supcon.targets import LabelSets, SoftLabels


def assert_backends_agree(rows, labels, *, rtol=1e-9, atol=1e-11, **options):
    upstream = torch.randn(len(rows), dtype=rows.dtype)
    right = loss_and_gradient(rows, labels, upstream, backend="reference", **options)
    for backend in BACKENDS:
        found = loss_and_gradient(rows, labels, upstream, backend=backend, **options)
        assert_gradients_equal(found, right, rtol=rtol, atol=atol)


@pytest.fixture(params=[False, True], ids=["labels on the host", "labels not on the host"])
def hidden_labels(request, monkeypatch):
    """Make the tiled backend treat labels in host memory like labels on another device, which it does not read."""
    if request.param:
        monkeypatch.setattr(layout, "on_host", lambda labels: False)


@pytest.mark.usefixtures("hidden_labels")
@pytest.mark.parametrize(("number", "tile"), [(1, 7), (2, 7), (3, 7), (65, 7), (65, 64), (257, 64), (257, 512)])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_odd_shapes_and_tile_borders(monkeypatch, summation, denominator, number, tile):
    monkeypatch.setattr(layout, "TILE", tile)
    monkeypatch.setattr(upper_triangle, "STRIP", tile)
    given = {"summation": summation, "denominator": denominator}
    for kind, labels in label_kinds(number).items():
        for width in (1, 3, 128) if kind == "mixed" or number == 1 else (3,):
            assert_backends_agree(random_rows(number, width), labels, **given)
            # exponentials with a shift: the bound on s exceeds the range of the exponent
            assert_backends_agree(random_rows(number, width), labels, temperature=0.0015, atol=1e-9, **given)


@pytest.mark.parametrize("number", [257, 600])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize("summation", ["out", "in"])
def test_half_of_the_matrix_in_strips_of_their_real_height(summation, dtype, tolerance, number):
    """Compare with `reference` in float64, on a batch with two views of most samples and a class of one row."""
    torch.manual_seed(number)
    samples = torch.randint(0, 20, (number // 2,))
    labels = torch.cat([samples, samples, torch.tensor([99])])[:number]
    labels[-1] = 99
    order = torch.randperm(number)
    labels, rows, upstream = labels[order], random_rows(number, 16)[order].to(dtype), torch.randn(number, dtype=dtype)
    assert upper_triangle.STRIP == 256
    assert dense.needs_half(problem_of(rows, labels, summation=summation))
    losses, gradient = loss_and_gradient(rows, labels, upstream, backend="dense", summation=summation)
    right = loss_and_gradient(rows.double(), labels, upstream.double(), backend="reference", summation=summation)
    assert losses[labels == 99].tolist() == [0]
    assert loss_error(losses, right[0]) < tolerance
    assert gradient_error(gradient, right[1], upstream) < tolerance


@pytest.mark.usefixtures("hidden_labels")
@pytest.mark.parametrize("tile", [7, 64])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_tile_borders_with_samples_and_references(monkeypatch, summation, denominator, tile):
    monkeypatch.setattr(layout, "TILE", tile)
    monkeypatch.setattr(upper_triangle, "STRIP", tile)
    given = {"summation": summation, "denominator": denominator}
    samples = torch.randint(0, 5, (35,))
    rows, refs, ref_labels = random_rows(70, 6), random_rows(41, 6), torch.randint(3, 8, (41,))
    for options in ({"positives_cap": 0}, {"positives_cap": 6}, {"ref_emb": refs, "ref_labels": ref_labels}):
        assert_backends_agree(rows, samples.repeat(2), num_views=2, **options, **given)
    terms = [
        loss_and_gradient(
            rows, samples.repeat(2), num_views=2, contrast_mode="one", positives_cap=2, backend=backend, **given
        )
        for backend in BACKENDS
    ]
    for found in terms[:-1]:
        torch.testing.assert_close(found, terms[-1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_gradients_that_are_not_requested_are_not_computed(monkeypatch, summation, denominator):
    """Without gradients of a memory, the backward pass saves a third of its products and a buffer."""
    added = []
    add = torch.Tensor.addmm_
    spy = lambda self, *products: (added.append(len(self)), add(self, *products))[1]  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "addmm_", spy)
    options = {"summation": summation, "denominator": denominator, "backend": "tiled"}
    rows, refs, gradients = random_rows(12, 4), random_rows(9, 4), []
    labels, ref_labels = torch.arange(12) // 3, torch.arange(9) // 2
    for requested, sizes in (((True, True), [12, 9]), ((True, False), [12]), ((False, True), [9])):
        inputs = [x.detach().requires_grad_(flag) for x, flag in zip((rows, refs), requested, strict=True)]
        added.clear()
        supcon_loss(inputs[0], labels, ref_emb=inputs[1], ref_labels=ref_labels, **options).mean().backward()
        assert added == sizes
        gradients.append([x.grad for x in inputs])
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[2][1])
    assert gradients[1][1] is gradients[2][0] is None


@pytest.mark.parametrize("target", [None, LabelSets("overlap"), SoftLabels("count")])
@pytest.mark.parametrize("structure", ["rows", "one, cap", "references"])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_nothing_synchronises_with_the_device(monkeypatch, summation, denominator, structure, target):
    """Run the functions inside the operators on the meta device: reading a value or a count would fail there."""
    more = {
        "rows": {},
        "one, cap": {"contrast_mode": "one", "positives_cap": 2},
        "references": {"ref_emb": torch.empty(9, 3, device="meta"), "ref_labels": torch.empty(9, device="meta").long()},
    }[structure]
    rows, labels = torch.empty(12, 3, device="meta"), torch.empty(12, device="meta").long()
    operator_name, parts_of, calls = "tiled_losses", operator.passes_of, []
    if target is not None:
        operator_name, parts_of = "weighted_losses", operator.weighted_passes_of
        given = torch.bool if isinstance(target, LabelSets) else torch.float32
        labels = torch.empty(12, 4, device="meta", dtype=given)
        more = {"one, cap": {"contrast_mode": "one"}, "references": more | {"ref_labels": labels[:9]}}.get(
            structure, {}
        )

    def forward_and_backward(*arguments):
        per_anchor, valid, table = operator.forward(parts_of, *arguments)
        gradients = operator.gradient(parts_of, per_anchor, table, True, True, *arguments)
        calls.append([part.shape for part in gradients])
        return per_anchor, valid, table

    monkeypatch.setattr(layout, "DEVICE_TILE", 8)
    monkeypatch.setattr(tiled, operator_name, forward_and_backward)
    temperature = {"out": 0.1, "in": 0.01}[summation]  # exponentials, logarithms
    options = {"summation": summation, "denominator": denominator, "temperature": temperature, "num_views": 2}
    supcon_loss(rows, labels, backend="tiled", target=target, **options, **more)
    shapes = {"rows": [(12, 3), (0,)], "one, cap": [(6, 3), (12, 3)], "references": [(12, 3), (9, 3)]}
    assert calls == [shapes[structure]]


def test_auto_takes_the_first_backend_that_can(monkeypatch):
    rows, labels = random_rows(6, 3), torch.arange(6) // 2
    used = []
    for name in BACKENDS:
        module = supcon_loss.__globals__["BACKENDS"][name]
        spy = lambda problem, name=name, solve=module.anchor_losses: (used.append(name), solve(problem))[1]  # noqa: E731
        monkeypatch.setattr(module, "anchor_losses", spy)
    pairs = torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), torch.tensor([2])
    for _ in range(2):
        supcon_loss(rows, labels)
        supcon_loss(rows, labels, ref_emb=rows[:1], ref_labels=labels[:1])
        supcon_loss(rows, indices_tuple=pairs)
        supcon_loss(rows, labels, similarity=lambda a, b: -torch.cdist(a, b))
        monkeypatch.setattr(dense, "PREFERRED_PAIRS", 35)  # of 36
    assert used == ["dense", "dense", "dense", "reference", "tiled", "dense", "tiled", "reference"]


def test_processes_choose_alike_whatever_their_numbers_of_rows():
    options = SupConOptions()
    for number in (0, 6, 4000):
        rows, labels = torch.zeros(number, 3), torch.zeros(number, dtype=torch.long)
        problem = build_problem(check_batch(rows, labels, None), options)
        assert choose_backend(problem, any_size=True) is tiled
        assert choose_backend(problem) is (tiled if number > 1024 else dense)
