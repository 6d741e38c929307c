"""`relation_distillation_loss` against plain loops, which reject wrong versions; its gradient, memory and errors."""

import json

import pytest
import torch
from helpers import relation_oracle
from helpers.peak_memory import measured
from helpers.supcon_batches import ANGLES, SPEC_ROWS, random_rows

from pml_supcon.functional import relation_distillation_loss
from pml_supcon.functional.relation_distillation import BACKENDS, reference
from pml_supcon.functional.supcon import execution
from pml_supcon.functional.supcon.tiled import layout

PAST_ANGLES = ANGLES + 0.2 * (torch.arange(8) % 3).double()
SPEC_PAST = torch.stack([PAST_ANGLES.cos(), PAST_ANGLES.sin()], dim=1)
SPEC_VALUE, SPEC_ENTROPY = 1.067322783, 1.143202899

backends = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(layout, "TILE", 4)


def step(rows, past, upstream=None, **options):
    """Return the losses, and the gradient of their weighted sum."""
    leaf = rows.detach().clone().requires_grad_()
    losses = relation_distillation_loss(leaf, past, **options).losses
    upstream = torch.linspace(-1, 2, len(losses), dtype=losses.dtype) if upstream is None else upstream
    return losses.detach(), torch.autograd.grad(losses, leaf, upstream)[0]


def oracle(rows, past, temperature=0.2, past_temperature=0.01, **more):
    losses = relation_oracle.anchor_losses(rows.tolist(), past.tolist(), temperature, past_temperature, **more)
    return torch.tensor(losses, dtype=torch.float64)


@backends
def test_the_values_of_the_specification(backend):
    stacked = [torch.stack([x[:4], x[4:]], dim=1) for x in (SPEC_ROWS, SPEC_PAST)]
    for z, past in ((SPEC_ROWS, SPEC_PAST), stacked):
        options = {"temperature": 0.2, "backend": backend}
        value = relation_distillation_loss(z, past, past_temperature=0.1, **options).mean().item()
        entropy = relation_distillation_loss(z, z, past_temperature=0.2, **options).mean().item()
        assert value == pytest.approx(SPEC_VALUE, abs=1e-9)
        assert entropy == pytest.approx(SPEC_ENTROPY, abs=1e-9)
    assert oracle(SPEC_ROWS, SPEC_PAST, 0.2, 0.1).mean().item() == pytest.approx(SPEC_VALUE, abs=1e-9)


@backends
@pytest.mark.parametrize("number", [1, 2, 3, 13])
def test_equals_loops(number, backend, small_tiles):
    for width, temperatures in ((3, (0.2, 0.01)), (5, (0.1, 0.5)), (2, (0.005, 0.002))):
        z, past = random_rows(number, 3), random_rows(number, width)
        terms = relation_distillation_loss(
            z, past, temperature=temperatures[0], past_temperature=temperatures[1], backend=backend
        )
        torch.testing.assert_close(terms.losses, oracle(z, past, *temperatures), rtol=1e-11, atol=1e-11)
        assert terms.valid.tolist() == [number > 1] * number


@pytest.mark.parametrize("mistake", relation_oracle.MISTAKES)
def test_a_wrong_version_differs(mistake):
    z, past = random_rows(13, 3), random_rows(13, 3)
    for temperatures in ((0.2, 0.1), (0.2, 0.01)):
        ours = relation_distillation_loss(z, past, temperature=temperatures[0], past_temperature=temperatures[1]).losses
        wrong = oracle(z, past, *temperatures, mistake=mistake)
        assert (wrong - ours).abs().max() > 1e-2
        assert abs(wrong.mean() - ours.mean()) > 1e-3


def test_the_gradient_is_0_where_models_and_temperatures_agree(small_tiles):
    z = random_rows(13, 3)
    losses, gradient = step(z, z, temperature=0.1, past_temperature=0.1)
    assert gradient.abs().max() < 1e-12
    assert losses.min() > 0.1  # the entropy
    _, gradient = step(z, z, temperature=0.1, past_temperature=0.1, backend="reference")
    assert gradient.abs().max() < 1e-12
    for other in ({"past_temperature": 0.11}, {"temperature": 0.11}):
        assert step(z, z, **{"temperature": 0.1, "past_temperature": 0.1, **other})[1].abs().max() > 1e-3


@backends
def test_the_past_gets_no_gradient(backend):
    """A version with a gradient of the past rows differs where one tensor is on both sides."""
    z = random_rows(13, 3)
    options = {"temperature": 0.2, "past_temperature": 0.1}
    _, right = step(z, z.clone(), **options, backend=backend)

    def gradient(loss_of):
        leaf = z.clone().requires_grad_()
        losses = loss_of(leaf)
        return torch.autograd.grad(losses, leaf, torch.linspace(-1, 2, 13, dtype=z.dtype))[0]

    def wrong(leaf):
        unit = torch.nn.functional.normalize(leaf, dim=1)
        return reference.anchor_losses(unit / 0.2**0.5, unit / 0.1**0.5).losses

    ours = gradient(lambda leaf: relation_distillation_loss(leaf, leaf, **options, backend=backend).losses)
    torch.testing.assert_close(ours, right)
    assert (gradient(wrong) - right).abs().max() > 1e-2
    past = z.clone().requires_grad_()
    assert not relation_distillation_loss(z, past, backend=backend).losses.requires_grad


def test_what_changes_the_loss_and_what_does_not():
    z, past = random_rows(13, 3), random_rows(13, 3)
    rotation = torch.linalg.qr(random_rows(3, 3))[0]
    wide = torch.cat([past, torch.zeros_like(past)], dim=1)
    expected = step(z, past)
    for other in (3 * past, past @ rotation, wide, past.flip(1)):
        torch.testing.assert_close(step(z, other), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(step(2 * z, past)[0], expected[0])
    order = torch.randperm(13)
    torch.testing.assert_close(step(z[order], past[order])[0], expected[0][order])
    # Gibbs: the cross entropy is at least the entropy of the past relations
    entropy = relation_distillation_loss(past, past, temperature=0.01).losses
    assert (expected[0] > entropy).all()
    unnormalised = relation_distillation_loss(z, past, normalize=False).losses
    right = reference.anchor_losses(z / 0.2**0.5, past / 0.01**0.5).losses
    torch.testing.assert_close(unnormalised, right)
    assert (unnormalised - expected[0]).abs().max() > 1e-2


@pytest.mark.parametrize("normalize", [True, False])
@backends
def test_gradient_of_the_rows(backend, normalize, small_tiles):
    z, past = random_rows(9, 3).requires_grad_(), random_rows(9, 5)
    options = {"past_temperature": 0.1, "backend": backend, "normalize": normalize}
    assert torch.autograd.gradcheck(lambda z: relation_distillation_loss(z, past, **options).losses, z)
    views = random_rows(8, 3).view(4, 2, 3).requires_grad_()
    past = past[:8].reshape(4, 2, 5)
    assert torch.autograd.gradcheck(lambda views: relation_distillation_loss(views, past, **options).losses, views)


@pytest.mark.parametrize("tile", [1, 4, 5, 512])
@pytest.mark.parametrize("number", [2, 13])
def test_tiles_of_any_size_equal_the_definition(tile, number, monkeypatch):
    monkeypatch.setattr(layout, "TILE", tile)
    z, past = random_rows(number, 3), random_rows(number, 5)
    for options in ({}, {"temperature": 0.001, "past_temperature": 3}):
        expected = step(z, past, **options, backend="reference")
        torch.testing.assert_close(step(z, past, **options), expected, rtol=1e-9, atol=1e-11)


def test_threads_divide_the_tiles(small_tiles):
    z, past = random_rows(40, 3), random_rows(40, 5)
    alone = step(z, past)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together, again = step(z, past), step(z, past)
    finally:
        execution.pool.cache_clear()
        torch.set_num_threads(before)
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    assert all(torch.equal(one, other) for one, other in zip(together, again, strict=True))


@pytest.mark.parametrize("past_temperature", [0.01, 1e-3, 1e-30])
def test_sharp_temperatures_in_float32(past_temperature, small_tiles):
    """`exp(100)` is beyond float32, and `exp(-100)` of a row that is far from all others below it."""
    near = torch.nn.functional.normalize(torch.tensor([4.0, 1.0]) + 0.1 * torch.randn(9, 2), dim=1)
    past = torch.cat([near, -near[:1], -near.roll(1, dims=1)[:2]])
    for z in (random_rows(12, 3, dtype=torch.float32), past):
        options = {"past_temperature": past_temperature}
        ours, right = step(z, past, **options), step(z.double(), past.double(), **options, backend="reference")
        assert all(x.isfinite().all() for x in ours)
        if past_temperature >= 1e-3:  # the errors of similarities are 1e-7, over the temperature 1e-4
            torch.testing.assert_close([x.double() for x in ours], list(right), rtol=2e-3, atol=2e-3)
    both = step(past, past, temperature=1e-4, past_temperature=1e-4)
    assert all(x.isfinite().all() for x in both)


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision(dtype, backend):
    z, past = random_rows(40, 8).to(dtype), random_rows(40, 4).to(dtype)
    right = step(z.double(), past.double(), past_temperature=0.05)
    ours = step(z, past, past_temperature=0.05, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = step(z, past, past_temperature=0.05, backend=backend)
    assert (ours[0].dtype, ours[1].dtype) == (torch.float32, dtype)
    for losses, gradient in (ours, autocast):
        torch.testing.assert_close(losses.double(), right[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient.double(), right[1], rtol=4 * torch.finfo(dtype).eps, atol=1e-4)
    # past rows of another dtype are computed in the dtype of the loss
    assert relation_distillation_loss(z, past.double(), backend=backend).losses.dtype == torch.float32


@backends
def test_batches_without_a_pair_have_the_loss_0(backend):
    for number in (0, 1):
        z = random_rows(number, 3).requires_grad_()
        terms = relation_distillation_loss(z, random_rows(number, 2), backend=backend)
        terms.mean().backward()
        assert (terms.mean(), terms.valid.tolist()) == (0, [False] * number)
        assert torch.equal(z.grad, torch.zeros(number, 3))
    losses, gradient = step(random_rows(2, 3), random_rows(2, 3), backend=backend)  # one relation, of 1
    torch.testing.assert_close(losses, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(gradient, torch.zeros(2, 3, dtype=torch.float64))


def test_a_row_of_zeros_has_no_direction():
    z, past = random_rows(5, 3), random_rows(5, 3)
    z[1], past[2] = 0, 0
    losses, gradient = step(z, past)
    assert losses.isfinite().all()
    assert torch.equal(gradient[1], torch.zeros(3))


def test_a_second_derivative():
    z, past = random_rows(6, 3).requires_grad_(), random_rows(6, 3)
    gradient = torch.autograd.grad(relation_distillation_loss(z, past).mean(), z, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiable once; a second derivative needs backend='reference'"):
        gradient.sum().backward()
    options = {"past_temperature": 0.1, "backend": "reference"}
    assert torch.autograd.gradgradcheck(lambda z: relation_distillation_loss(z, past, **options).losses, z)


@backends
def test_under_the_compiler(backend):
    torch.compiler.reset()

    def loss(z, past):
        return relation_distillation_loss(2 * z, past, backend=backend).mean()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for number in (6, 9):
        z, past = random_rows(number, 3).requires_grad_(), random_rows(number, 2)
        value, expected = compiled(z, past), loss(z, past)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, z), torch.autograd.grad(expected, z))


def test_the_operator_keeps_its_contract():
    rows = random_rows(9, 3).requires_grad_()
    relation_distillation_loss(rows, rows)  # defines nothing new: the operator exists from the import on
    torch.library.opcheck(torch.ops.pml_supcon.tiled_relation_losses.default, (rows, random_rows(9, 2)))


Z = torch.eye(4)
BAD = [
    (ValueError, r"`embeddings` to have shape \(N, D\) or \(B, V, D\), but got \(4,\)", (Z[0], Z[0]), {}),
    (TypeError, "`embeddings` to be floating point, but got torch.int64", (Z.long(), Z), {}),
    (TypeError, "`past_embeddings` to be floating point, but got torch.int64", (Z, Z.long()), {}),
    (TypeError, "`past_embeddings` to be a torch.Tensor, but got list", (Z, Z.tolist()), {}),
    (ValueError, r"`past_embeddings` to have shape \(4, any width\), .*, but got \(3, 4\)", (Z, Z[:3]), {}),
    (ValueError, r"shape \(2, 2, any width\), .*, but got \(4, 4\)", (Z.view(2, 2, 4), Z), {}),
    (ValueError, r"shape \(2, 2, any width\), .*, but got \(1, 4, 4\)", (Z.view(2, 2, 4), Z.view(1, 4, 4)), {}),
    (ValueError, "`past_embeddings` to have at least one column", (Z, Z[:, :0]), {}),
    (ValueError, "`past_embeddings` to have values, but got a tensor on the meta device", (Z, Z.to("meta")), {}),
    (ValueError, "`temperature` to be above 0, but got 0", (Z, Z), {"temperature": 0}),
    (ValueError, "`past_temperature` to be above 0, but got -1", (Z, Z), {"past_temperature": -1}),
    (TypeError, "`past_temperature` to be a number, but got None", (Z, Z), {"past_temperature": None}),
    (TypeError, "`normalize` to be True or False, but got 1", (Z, Z), {"normalize": 1}),
    (ValueError, r"`backend` to be one of \['tiled', 'reference'\], but got 'dense'", (Z, Z), {"backend": "dense"}),
    (TypeError, "`group` to be a ProcessGroup or None, but got int", (Z, Z), {"group": 1}),
]


@pytest.mark.parametrize(("error", "match", "arguments", "options"), BAD)
def test_bad_input(error, match, arguments, options):
    with pytest.raises(error, match=match):
        relation_distillation_loss(*arguments, **options)


def test_another_device_is_named(monkeypatch):
    monkeypatch.setattr("pml_supcon.functional.relation_distillation.check_dense", lambda *_: None)
    with pytest.raises(ValueError, match="to be on the device of the embeddings, cpu, but got meta"):
        relation_distillation_loss(Z, Z.to("meta"))


PROBE = """
import json, re, sys
from pathlib import Path
import torch
from pml_supcon.functional import relation_distillation_loss

def resident(what):
    return 1024 * int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def peak(number):
    z, past = torch.randn(number, 16, requires_grad=True), torch.randn(number, 8)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    relation_distillation_loss(z, past).mean().backward()
    return resident("VmHWM") - before

torch.set_num_threads(1)
peak(600)  # a first step loads modules
print(json.dumps([peak(number) for number in json.loads(sys.argv[1])]))
"""


@pytest.mark.slow
def test_memory_is_linear_in_the_rows():
    """One float32 matrix of all pairs would take 67 MB at 4,096 rows."""
    small, large = measured(PROBE, json.dumps([2048, 4096]))
    assert large < 16e6
    assert large - small < 4e6
