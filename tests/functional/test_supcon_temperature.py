"""A temperature that is a tensor: values, gradients and errors of `supcon_loss`."""

import pytest
import torch
from helpers.supcon_batches import BACKENDS, OPTION_NAMES, OPTIONS, problem_of, random_rows

from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon import execution, triton
from pml_supcon.functional.supcon.temperature import FLOAT16_BOUND, BoundedTemperature
from pml_supcon.targets import Hierarchy

LABELS = torch.tensor([0, 1, 0, 2]).repeat(2)  # two views, view-major
CASES = {
    "alone": {},
    "raw rows": {"normalize": False},
    "references": {"ref_emb": True, "ref_labels": torch.tensor([0, 2, 1, 0, 5])},
    "batch first": {"ref_emb": True, "ref_labels": torch.cat([LABELS, LABELS]), "ref_starts_with_batch": True},
    "first view": {"contrast_mode": "one", "num_views": 2},
    "cap": {"positives_cap": 2, "num_views": 2},
    "pairs": {"indices_tuple": tuple(map(torch.tensor, ([0, 1, 0], [2, 4, 5], [0, 1, 3], [1, 2, 4])))},
    "scaled": {"scale_by_temperature": True},
    "some anchors": {"anchors": torch.arange(8) % 3 > 0, "scale_by_temperature": True},
    "margin": {"denominator": "one_positive", "margin": 0.2},
    "class balanced": {"class_balanced": True},
}


def arguments(name):
    """Return rows and options of a case."""
    options = dict(CASES[name])
    if options.get("ref_emb"):
        options["ref_emb"] = random_rows(len(options["ref_labels"]), 3)
    return random_rows(len(LABELS), 3), options


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_of_the_rows_equal_those_of_a_number(backend, name):
    rows, options = arguments(name)
    found = []
    for temperature in (0.07, torch.tensor(0.07, dtype=torch.float64), torch.tensor([0.07], dtype=torch.float64)):
        leaf = rows.clone().requires_grad_()
        losses = supcon_loss(leaf, LABELS, temperature=temperature, backend=backend, **options).losses
        found.append((losses.detach(), *torch.autograd.grad(losses.sum(), leaf)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_gradient_of_rows_and_logarithm(backend, name):
    rows, options = arguments(name)
    logarithm = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    refs = [options.pop("ref_emb").requires_grad_()] if "ref_emb" in options else []

    def losses(rows, logarithm, ref_emb=None):
        given = {"temperature": logarithm.exp(), "backend": backend, "ref_emb": ref_emb}
        return supcon_loss(rows, LABELS, **given, **options).losses

    assert torch.autograd.gradcheck(losses, (rows.requires_grad_(), logarithm, *refs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_gradient_of_every_summation_and_denominator(backend, summation, denominator):
    def losses(rows, logarithm):
        options = {"summation": summation, "denominator": denominator, "backend": backend}
        return supcon_loss(rows, LABELS, temperature=logarithm.exp(), **options).losses

    logarithm = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(losses, (random_rows(8, 3).requires_grad_(), logarithm))


def test_the_definition_has_forward_and_second_derivatives():
    rows, logarithm = random_rows(8, 3).requires_grad_(), torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)

    def losses(rows, logarithm):
        return supcon_loss(rows, LABELS, temperature=logarithm.exp()).losses

    assert torch.autograd.gradcheck(losses, (rows, logarithm), check_forward_ad=True, check_backward_ad=False)
    assert torch.autograd.gradgradcheck(
        lambda *inputs: supcon_loss(inputs[0], LABELS, temperature=inputs[1].exp(), backend="reference").losses,
        (rows, logarithm),
    )


def test_levels_of_a_hierarchy():
    rows, levels = random_rows(8, 3).requires_grad_(), torch.stack([LABELS // 2, LABELS], dim=1)
    target, logarithm = Hierarchy([0.5, 2]), torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)

    def loss(rows, temperature):
        return supcon_loss(rows, levels, temperature=temperature, target=target, scale_by_temperature=True).mean()

    torch.testing.assert_close(loss(rows, logarithm.exp()), loss(rows, logarithm.exp().item()))
    assert torch.autograd.gradcheck(lambda rows, logarithm: loss(rows, logarithm.exp()), (rows, logarithm))


def test_another_similarity_is_divided_by_the_tensor():
    rows, logarithm = random_rows(8, 3).requires_grad_(), torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)

    def losses(rows, temperature):
        options = {"similarity": lambda a, b: -(torch.cdist(a, b) ** 2), "scale_by_temperature": True}
        return supcon_loss(rows, LABELS, temperature=temperature, **options).losses

    torch.testing.assert_close(losses(rows, logarithm.exp()), losses(rows, logarithm.exp().item()))
    assert torch.autograd.gradcheck(lambda rows, logarithm: losses(rows, logarithm.exp()), (rows, logarithm))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_16_bits_are_divided_in_float32(dtype):
    rows, temperature = random_rows(8, 3).to(dtype).requires_grad_(), torch.tensor(0.05, requires_grad=True)
    losses = supcon_loss(rows, LABELS, temperature=temperature).losses
    right = supcon_loss(rows.detach().double(), LABELS, temperature=0.05).losses
    torch.testing.assert_close(losses.double(), right, rtol=1e-5, atol=1e-5)
    losses.sum().backward()
    assert rows.grad.dtype == dtype
    assert temperature.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("temperature", "shifted"),
    [
        (torch.tensor(0.02), False),  # similarities up to 50: the host reads a tensor of the CPU
        (torch.tensor(0.01), True),
        (BoundedTemperature(torch.tensor(0.5, device="meta"), 0.02), False),
        (BoundedTemperature(torch.tensor(0.5, device="meta"), 0.01), True),
        (torch.tensor(0.5, device="meta"), True),  # no value, like one on a GPU: the range is unknown
    ],
)
def test_a_shift_only_where_the_range_needs_one(temperature, shifted):
    value = temperature if isinstance(temperature, torch.Tensor) else temperature.value
    rows, labels = random_rows(8, 3, dtype=torch.float32).to(value.device), LABELS.to(value.device)
    problem = problem_of(rows, labels, temperature=temperature)
    assert execution.needs_shift(problem) == shifted
    assert execution.needs_shift(problem_of(rows, labels, temperature=temperature, normalize=False))


@pytest.mark.parametrize(
    ("given", "minimum", "expected"),
    [
        ({}, 0.01, torch.float16),
        ({"products": "float32"}, 0.01, torch.float32),
        ({"products": "float16"}, 0.01, torch.float16),
        ({"normalize": False}, 0.01, torch.float32),
        ({}, 0.5 / FLOAT16_BOUND, torch.float32),
        ({}, None, torch.float32),
    ],
)
def test_products_on_triton(given, minimum, expected):
    rows, labels, value = (torch.zeros(shape, device="meta") for shape in ((8, 3), (8,), ()))
    temperature = value if minimum is None else BoundedTemperature(value, minimum)
    problem = problem_of(rows.bfloat16(), labels.long(), temperature=temperature, **given)
    assert triton.products_dtype(problem) == expected


@pytest.mark.parametrize(
    ("error", "message", "temperature"),
    [
        (ValueError, "`temperature` to be above 0, but got 0.0", torch.tensor(0.0)),
        (ValueError, "`temperature` to be above 0, but got -1.0", torch.tensor(-1.0)),
        (ValueError, "`temperature` to be a finite number, but got nan", torch.tensor(torch.nan)),
        (ValueError, "`temperature` to be at least 1.17", torch.tensor(1e-40)),
        (ValueError, r"`temperature` to be one value, but got shape \(2,\)", torch.tensor([0.1, 0.2])),
        (ValueError, r"`temperature` to be one value, but got shape \(0,\)", torch.tensor([])),
        (ValueError, "on the device of the embeddings, cpu, but got meta", torch.tensor(0.1, device="meta")),
        (TypeError, "`temperature` to be floating point, but got torch.int64", torch.tensor(1)),
        (TypeError, "`temperature` to be a dense tensor", torch.tensor([0.1]).to_sparse()),
    ],
)
def test_bad_temperatures(error, message, temperature):
    with pytest.raises(error, match=message):
        supcon_loss(random_rows(8, 3), LABELS, temperature=temperature)


def test_float16_products_need_a_range():
    rows, labels, value = (torch.zeros(shape, device="meta") for shape in ((8, 3), (8,), ()))
    with pytest.raises(ValueError, match=r"`LearnableTemperature` with `products='float16'`, at least 3\.1e-05"):
        problem_of(rows, labels.long(), temperature=value, products="float16")


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_compiles_whole(backend):
    torch.compiler.reset()
    rows, labels = random_rows(12, 4, dtype=torch.float32), torch.arange(12) % 3

    def step(rows, logarithm):
        return supcon_loss(rows, labels, temperature=logarithm.exp(), backend=backend).mean()

    found = []
    for way in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = rows.clone().requires_grad_(), torch.tensor(-2.0, requires_grad=True)
        loss = way(*leaves)
        found.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(*found)
