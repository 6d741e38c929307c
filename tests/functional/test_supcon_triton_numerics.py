"""The Triton backend against the definition in float64: on a GPU, or without one in Triton's interpreter.

Without a GPU, `test_supcon_triton.py` runs this file.
"""

import itertools
import os

import pytest
import torch
import torch.nn.functional as F
from helpers.supcon_batches import (
    NORMALISED_TOLERANCE,
    OPTION_NAMES,
    OPTIONS,
    TOLERANCE,
    gradient_error,
    label_kinds,
    loss_error,
    problem_of,
    random_rows,
)

from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon import reference, triton
from pml_supcon.functional.supcon.backends import solve
from pml_supcon.functional.supcon.problem import Problem
from pml_supcon.functional.supcon.temperature import BoundedTemperature
from pml_supcon.losses import SupConLossIn, SupConLossOut

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

if not torch.cuda.is_available() and not INTERPRETED:
    pytest.skip("needs a GPU, or Triton's interpreter, in which test_supcon_triton.py runs it", allow_module_level=True)

needs_gpu = pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
# the interpreter computes in NumPy, which reports the infinities that the kernels mask
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def tuned_for_real_batches_only(request):
    """Let Triton time block shapes only for real batches: it compiles every shape."""
    torch.use_deterministic_algorithms("real" not in request.node.name, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def unit_rows(number, width, dtype=torch.float32):
    """Return rows of unit length, up to rounding to the dtype."""
    return F.normalize(torch.randn(number, width), dim=1).to(dtype)


def losses_and_gradients(rows, labels, upstream, *, backend, ref_emb=None, **options):
    """Return losses, validity, and the gradients of rows and references under an upstream gradient."""
    inputs = [part.detach().requires_grad_() for part in (rows, ref_emb) if part is not None]
    references = {} if ref_emb is None else {"ref_emb": inputs[1]}
    losses, valid = supcon_loss(inputs[0], labels, backend=backend, **references, **options)
    return losses.detach(), valid, torch.autograd.grad(losses, inputs, upstream[: len(losses)].to(losses))


def assert_agrees(rows, labels, *, upstream=None, scale=1.0, **options):
    """Compare with the reference in float64 on the same values; `scale` widens the tolerance."""
    upstream = torch.randn(len(rows)) if upstream is None else upstream
    tolerance = TOLERANCE[rows.dtype]
    for_reference = {key: part.double() if key == "ref_emb" else part for key, part in options.items()}
    right = losses_and_gradients(rows.double(), labels, upstream, backend="reference", **for_reference)
    on_device = {key: part.to(DEVICE) if isinstance(part, torch.Tensor) else part for key, part in options.items()}
    ours = losses_and_gradients(rows.to(DEVICE), labels.to(DEVICE), upstream.to(DEVICE), backend="triton", **on_device)
    assert ours[0].dtype == torch.float32
    assert ours[1].tolist() == right[1].tolist()
    assert loss_error(ours[0], right[0]) <= tolerance["losses"] * scale
    for gradient, expected in zip(ours[2], right[2], strict=True):
        assert gradient.dtype == rows.dtype
        assert gradient_error(gradient, expected, upstream) <= tolerance["gradients"] * scale


@pytest.mark.parametrize("structure", ["rows", "cap 0", "cap 4", "one, cap 2", "references"])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_all_options(summation, denominator, structure):
    samples = torch.randint(0, 6, (25,))
    samples[0] = 99  # the only sample of its class: its other view is its only positive
    options = {"summation": summation, "denominator": denominator}
    if structure == "references":
        # some labels have no reference, some references no anchor
        references = {"ref_emb": random_rows(35, 5, dtype=torch.float32), "ref_labels": torch.randint(2, 9, (35,))}
        return assert_agrees(random_rows(25, 5, dtype=torch.float32), samples, **references, **options)
    if "one" in structure:
        options["contrast_mode"] = "one"
    if "cap" in structure:
        options["positives_cap"] = int(structure[-1])
    assert_agrees(random_rows(50, 5, dtype=torch.float32), samples.repeat(2), num_views=2, **options)


@pytest.mark.parametrize("structure", ["rows", "one, cap 2", "references", "no positives"])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_mean_of_valid_anchors(summation, denominator, structure):
    """Compare the loss modules' mean, which has kernels of its own; two anchors have no positive."""
    loss_class = SupConLossOut if summation == "out" else SupConLossIn
    options = {"denominator": denominator, "scale_by_temperature": structure == "rows"}
    labels, others = torch.cat([torch.randint(0, 6, (33,)), torch.tensor([98, 99])]), ()
    labels = torch.arange(35) if structure == "no positives" else labels
    if structure == "references":
        others = (None, random_rows(41, 5, dtype=torch.float32), torch.randint(2, 9, (41,)))
    if structure == "one, cap 2":
        options |= {"contrast_mode": "one", "positives_cap": 2, "num_views": 2}
        labels = labels.repeat(2)
    rows = random_rows(len(labels), 5, dtype=torch.float32)
    found = []
    for backend, dtype, device in (("reference", torch.float64, "cpu"), ("triton", torch.float32, DEVICE)):
        leaf = rows.to(device, dtype).requires_grad_()
        given = [x if x is None else x.to(device, dtype if x.is_floating_point() else None) for x in others]
        loss = loss_class(backend=backend, **options)(leaf, labels.to(device), *given)
        loss.mul(-7).backward()
        found.append((loss.detach().cpu().double(), leaf.grad.cpu().double()))
    (right, right_gradient), (ours, gradient) = found
    assert (right == 0) == (structure == "no positives")
    torch.testing.assert_close(ours, right, rtol=0, atol=1e-5 * (1 + right.abs().item()))
    torch.testing.assert_close(gradient, right_gradient, rtol=0, atol=1e-5 * right_gradient.norm(dim=1).max().item())


def test_mean_of_more_losses_than_a_block():
    from pml_supcon.functional.supcon.triton.forward import mean_kernel

    valid = torch.rand(1000, device=DEVICE) < 0.7
    losses = torch.where(valid, torch.randn(1000, device=DEVICE), 0)
    mean, number = torch.empty((), device=DEVICE), torch.empty((), device=DEVICE)
    mean_kernel[(1,)](mean, number, losses, valid, 1000, BLOCK_M=256)
    assert number == valid.sum()
    torch.testing.assert_close(mean.double(), losses[valid].double().mean(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("number", "width"), [(1, 1), (3, 128), (130, 3), (5, 512), (4, 600)])
def test_odd_shapes(number, width):
    options = itertools.islice(itertools.cycle(OPTIONS), width, None)  # each shape starts at another pair of options
    for labels, given in zip(label_kinds(number).values(), options, strict=False):
        rows = random_rows(number, 2 * width, dtype=torch.float32)[:, ::2]  # not contiguous
        assert_agrees(rows, labels, **dict(zip(OPTION_NAMES, given, strict=True)))


@pytest.mark.parametrize(
    ("dtype", "summation", "denominator"),
    [(torch.float16, *options) for options in OPTIONS] + [(torch.bfloat16, *options) for options in OPTIONS[::2]],
)
def test_half_products(dtype, summation, denominator):
    """Compare on rows of unit length, so that normalising adds no rounding."""
    options = {"summation": summation, "denominator": denominator, "normalize": False}
    samples = torch.randint(0, 5, (20,))
    rows, labels = unit_rows(40, 24, dtype), samples.repeat(2)
    assert_agrees(rows, labels, **options)
    assert_agrees(rows, labels, num_views=2, positives_cap=2, contrast_mode="one", temperature=0.01, scale=5, **options)
    references = {"ref_emb": unit_rows(37, 24, dtype), "ref_labels": torch.randint(0, 7, (37,))}
    assert_agrees(rows, labels, **references, **options)


@pytest.mark.parametrize("products", ["float32", "float16"])
@pytest.mark.parametrize("has_references", [False, True])
def test_half_products_over_a_tensor_temperature(has_references, products):
    """Compare losses, and the gradients of rows and temperature."""
    rows, labels, refs = random_rows(40, 24), torch.randint(0, 5, (40,)), random_rows(37, 24)
    options = {"ref_labels": torch.randint(0, 7, (37,))} if has_references else {}
    found = []
    for backend, dtype, device in (("reference", torch.float64, "cpu"), ("triton", torch.float32, DEVICE)):
        leaves = [rows.to(device, dtype).requires_grad_(), torch.tensor(0.05, device=device, requires_grad=True)]
        given = {name: part.to(device) for name, part in options.items()}
        given |= {"ref_emb": refs.to(device, dtype)} if has_references else {}
        given |= {"temperature": BoundedTemperature(leaves[1], 0.02), "backend": backend}
        given["products"] = "auto" if backend == "reference" else products
        losses = solve(problem_of(leaves[0], labels.to(device), **given)).losses
        found.append([part.double().cpu() for part in (losses.detach(), *torch.autograd.grad(losses.mean(), leaves))])
    for ours, right in zip(*reversed(found), strict=True):
        assert (ours - right).abs().max() <= (0.005 if products == "float16" else 1e-5) * right.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [3, 520])
def test_half_products_of_odd_widths(dtype, width):
    assert_agrees(unit_rows(20, width, dtype), torch.randint(0, 4, (20,)), normalize=False)


@pytest.mark.parametrize(("dtype", "tolerance"), NORMALISED_TOLERANCE.items())
def test_normalising_half_embeddings(dtype, tolerance):
    """Normalise in float32, then round to float16: this changes each `s_ij` by up to a rounding over tau."""
    rows, labels = random_rows(65, 24, dtype=torch.float32).to(dtype), torch.randint(0, 9, (65,))
    upstream = torch.full((65,), 1 / 65)
    right = losses_and_gradients(rows.double(), labels, upstream, backend="reference")
    ours = losses_and_gradients(rows.to(DEVICE), labels.to(DEVICE), upstream.to(DEVICE), backend="triton")
    torch.testing.assert_close(ours[0].cpu().double(), right[0], rtol=0, atol=tolerance)
    error = (ours[2][0].cpu().double() - right[2][0]).norm() / right[2][0].norm()
    assert error < tolerance


@pytest.mark.parametrize("spread", [2.0, 0.2, 0.03])
@pytest.mark.parametrize(
    ("dtype", "products", "least"),
    [
        (torch.bfloat16, "auto", 0.998),
        (torch.float16, "auto", 0.998),
        (torch.float32, "float16", 0.998),
        (torch.float32, "auto", 0.999999),
        (torch.bfloat16, "float32", 0.9999),
    ],
)
def test_gradients_of_tight_classes(dtype, products, least, spread):
    """Late in training classes are tight, and a gradient is a small difference of large pulls."""
    number, width, classes = 192, 64, 6
    labels = torch.arange(number) % classes
    centres = F.normalize(torch.randn(classes, width), dim=1)
    rows = (centres[labels] + spread * torch.randn(number, width) / width**0.5).to(dtype)
    upstream = torch.full((number,), 1 / number)
    right = losses_and_gradients(rows.double(), labels, upstream, backend="reference")
    options = {"backend": "triton", "products": products}
    ours = losses_and_gradients(rows.to(DEVICE), labels.to(DEVICE), upstream.to(DEVICE), **options)
    assert F.cosine_similarity(ours[2][0].cpu().double().flatten(), right[2][0].flatten(), dim=0) >= least
    torch.testing.assert_close(ours[0].cpu().double(), right[0], rtol=0, atol=0.005)


@pytest.mark.parametrize("temperature", [0.01, 0.03, 10.0])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_other_temperatures(summation, denominator, temperature):
    """Shift exponentials below a temperature of 1/40; here `|s|` is up to 100, and its rounding up to 8e-6."""
    rows, labels = random_rows(50, 3, dtype=torch.float32), torch.randint(0, 6, (25,)).repeat(2)
    options = {"summation": summation, "denominator": denominator, "temperature": temperature, "scale": 5}
    assert_agrees(rows, labels, **options)
    assert_agrees(rows, labels, num_views=2, contrast_mode="one", **options)


@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_long_rows_that_are_not_normalised(summation, denominator):
    """Compute similarities outside the range of `exp`, also all far below 0, where a padding of 0 would dominate."""
    options = {"summation": summation, "denominator": denominator, "normalize": False}
    labels = torch.randint(0, 4, (37,))
    assert_agrees(random_rows(37, 4, dtype=torch.float32, scale=2), labels, scale=20, **options)
    opposite = 0.5 * torch.rand(61, 4) - 3  # exp(-s) is infinite
    references = {"ref_emb": opposite, "ref_labels": torch.cat([torch.randint(0, 4, (24,)), torch.full((37,), 9)])}
    assert_agrees(-opposite[:37], labels, scale=100, **references, **options)  # s near -300 is rounded by 3e-5


@pytest.mark.parametrize("size", [0.0, 1e-8, 65536.0])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_any_size_of_upstream_gradient(monkeypatch, dtype, size):
    """Scale float16 weights: a mean over many anchors or a gradient scaler would underflow or overflow them."""
    rows, labels, upstream = unit_rows(40, 8, dtype), torch.randint(0, 5, (40,)), torch.full((40,), size)
    right = losses_and_gradients(rows.double(), labels, upstream, backend="reference", normalize=False)
    leaf = rows.to(DEVICE).float().requires_grad_()
    problem = problem_of(leaf, labels.to(DEVICE), normalize=False)
    # products in the dtype, but a float32 gradient, in which a tiny one is not rounded to 0
    monkeypatch.setattr(Problem, "input_dtype", dtype)
    losses, _ = triton.anchor_losses(problem)
    (gradient,) = torch.autograd.grad(losses, leaf, upstream.to(DEVICE))
    error = (gradient.cpu().double() - right[2][0]).norm(dim=1)
    assert (error <= TOLERANCE[dtype]["gradients"] * right[2][0].norm(dim=1).max()).all()


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_a_nan_row_gives_a_nan_loss(summation, denominator, temperature):
    options = {"summation": summation, "denominator": denominator, "temperature": temperature, "backend": "triton"}
    for labels in ([0, 0, 1, 1], [0, 1, 1, 1]):  # row 0 is a positive of another row, then only a negative
        rows = torch.randn(4, 3)
        rows[0, 0] = torch.nan
        rows = rows.to(DEVICE).requires_grad_()
        loss = supcon_loss(rows, torch.tensor(labels, device=DEVICE), **options).mean()
        assert loss.isnan()
        loss.backward()
        assert rows.grad.isnan().all()


@pytest.mark.parametrize("summation", ["out", "in"])
def test_a_positive_whose_share_underflows_has_a_gradient(summation):
    rows, labels = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.1], [0.9, 0.0]]), torch.tensor([0, 0, 1, 2])
    options = {"summation": summation, "denominator": "one_positive", "temperature": 0.01}
    assert_agrees(rows, labels, scale=5, **options)  # a share of exp(-200)


def test_gradients_only_of_inputs_that_require_them():
    rows, refs = (random_rows(n, 4, dtype=torch.float32).to(DEVICE) for n in (20, 17))
    labels, ref_labels = (torch.randint(0, 4, (n,), device=DEVICE) for n in (20, 17))
    found = []
    for of_rows, of_refs in ((True, True), (True, False), (False, True)):
        rows, refs = rows.detach().requires_grad_(of_rows), refs.detach().requires_grad_(of_refs)
        supcon_loss(rows, labels, ref_emb=refs, ref_labels=ref_labels, backend="triton").mean().backward()
        assert (rows.grad is None, refs.grad is None) == (not of_rows, not of_refs)
        found.append((rows.grad, refs.grad))
    torch.testing.assert_close(found[0], (found[1][0], found[2][1]), rtol=0, atol=0)
    assert not supcon_loss(rows.detach(), labels, backend="triton").losses.requires_grad


@pytest.mark.parametrize(("number", "references"), [(0, None), (0, 3), (3, 0)])
def test_nothing_to_contrast(number, references):
    options = {}
    if references is not None:
        options = {"ref_emb": torch.randn(references, 4), "ref_labels": torch.zeros(references).long()}
    assert_agrees(torch.randn(number, 4), torch.zeros(number).long(), **options)


#: Problems that several processes solve, each for some of the anchors: see `group.by_anchors`.
PARTS = {
    "rows, cap": {"positives_cap": 4},
    "first view, cap": {"positives_cap": 2, "contrast_mode": "one"},
    "batch and memory, first view": {"ref_starts_with_batch": True, "contrast_mode": "one"},
}


def problem_in(dtype, device, rows, labels, *, ref_starts_with_batch=False, **options):
    """Return the problem of 25 samples in two views, and its embeddings and references as separate leaves."""
    rows, labels = rows.to(device, dtype), labels.to(device)
    embeddings, references = (x.clone().requires_grad_() for x in (rows[:50], rows))
    leaves = (embeddings,)
    if ref_starts_with_batch:
        options |= {"ref_emb": references, "ref_labels": labels, "ref_starts_with_batch": True}
        leaves = (embeddings, references)
    return problem_of(embeddings, labels[:50], num_views=2, **options), leaves


@pytest.mark.parametrize(
    ("structure", "summation", "denominator"),
    [(part, *options) for part, options in zip(PARTS, OPTIONS[::2], strict=True)],  # parts do not depend on the options
)
def test_parts_of_the_anchors_are_the_whole(structure, summation, denominator):
    """Solve parts at the start, in the middle and at the end, and a part without anchors."""
    labels = torch.cat([torch.randint(0, 6, (25,)).repeat(2), torch.randint(0, 9, (19,))])
    batch = random_rows(69, 5, dtype=torch.float32), labels  # the batch and the memory
    options = PARTS[structure] | {"summation": summation, "denominator": denominator}
    whole, right_leaves = problem_in(torch.float64, "cpu", *batch, **options)
    right, valid = reference.anchor_losses(whole)
    upstream = torch.randn(len(right))
    right_gradients = torch.autograd.grad(right, right_leaves, upstream.double())

    problem, leaves = problem_in(torch.float32, DEVICE, *batch, **options)
    cuts = [0, 0, 7, len(right) - 3, len(right)]
    parts = [triton.anchor_losses(problem.part(slice(*cut))) for cut in itertools.pairwise(cuts)]
    assert [len(part.losses) for part in parts] == [0, 7, len(right) - 10, 3]
    assert torch.cat([part.valid for part in parts]).tolist() == valid.tolist()
    losses = torch.cat([part.losses for part in parts])
    assert loss_error(losses, right) <= TOLERANCE[torch.float32]["losses"]
    gradients = torch.autograd.grad(losses, leaves, upstream.to(DEVICE))
    for gradient, expected in zip(gradients, right_gradients, strict=True):
        assert expected.abs().max() > 1e-3
        assert gradient_error(gradient, expected, upstream) <= TOLERANCE[torch.float32]["gradients"]


@pytest.mark.parametrize("normalize", [True, False])
def test_few_anchors_with_many_rows(normalize):
    """Divide the columns over programs, and merge their sums and gradients in a fixed order."""
    rows, refs = unit_rows(20, 24), unit_rows(300, 24)
    labels, ref_labels = torch.randint(0, 6, (20,)), torch.randint(0, 9, (300,))
    assert_agrees(rows, labels, ref_emb=refs, ref_labels=ref_labels, summation="in", normalize=normalize)


def test_column_major_rows():
    rows, labels = random_rows(7, 40, dtype=torch.float32).T, torch.randint(0, 5, (40,))
    assert rows.stride() == (1, 40)
    assert_agrees(rows, labels)


def test_labels_of_64_bits():
    assert_agrees(random_rows(12, 3, dtype=torch.float32), torch.tensor([2**62, -(2**62), 5, 2**62 - 1] * 3))


def test_runs_are_the_same_bits():
    rows, labels = random_rows(130, 20, dtype=torch.float32).to(DEVICE), torch.randint(0, 9, (130,)).to(DEVICE)
    upstream = torch.randn(130, device=DEVICE)
    first, second = (losses_and_gradients(rows, labels, upstream, backend="triton") for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[2][0], second[2][0])
    leaf = rows.requires_grad_()
    means = [SupConLossOut(backend="triton")(leaf, labels) for _ in range(2)]
    assert torch.equal(*means)
    assert torch.equal(*(torch.autograd.grad(mean, leaf)[0] for mean in means))


def test_derivatives_that_it_lacks_are_errors():
    rows, labels = random_rows(6, 3, dtype=torch.float32).to(DEVICE), torch.arange(6, device=DEVICE) // 2

    def step(x):
        return supcon_loss(x, labels, backend="triton").mean()

    with pytest.raises(ValueError, match=r"it has no forward-mode derivative.*; backends that can: reference$"):
        torch.func.jvp(step, (rows,), (torch.ones_like(rows),))
    with pytest.raises(ValueError, match=r"torch.func cannot differentiate it; backends that can: reference$"):
        torch.func.grad(step)(rows)
    rows.requires_grad_()
    for loss in (step(rows), SupConLossOut(backend="triton")(rows, labels)):
        (gradient,) = torch.autograd.grad(loss, rows, create_graph=True)
        with pytest.raises(RuntimeError, match="The triton backend is differentiable once; a second derivative needs"):
            gradient.square().sum().backward()


def test_operators_keep_their_contract():
    """Run PyTorch's checks of the schema, fake tensors and autograd registration."""
    from pml_supcon.functional.supcon.triton import operators  # noqa: F401 - registers them

    rows = torch.randn(3, 12, device=DEVICE).bfloat16().T.requires_grad_()  # column-major; the gradient is not
    refs = torch.randn(12, 3, device=DEVICE).bfloat16().requires_grad_()
    labels, order = torch.arange(12, device=DEVICE) // 3, torch.randperm(12, device=DEVICE)
    options = (torch.float16, True, 0.1, "out", "all", False)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    symmetric = (rows, None, labels, order, None, None, None, None, 0, *options)
    sides = (rows, refs, labels, order, labels, order, None, None, None, *options)
    for operator in (torch.ops.pml_supcon.triton_losses.default, torch.ops.pml_supcon.triton_mean.default):
        torch.library.opcheck(operator, symmetric, test_utils=checks)
        torch.library.opcheck(operator, sides, test_utils=checks)


@pytest.mark.parametrize("columns_first", [False, True])
@pytest.mark.parametrize("name", ["function", "module"])
def test_compiles_whole(name, columns_first):
    """Compile without a graph break, to the same numbers."""
    torch.compiler.reset()
    rows, labels = random_rows(20, 4, dtype=torch.float32).to(DEVICE), (torch.arange(20, device=DEVICE) // 4)

    module = SupConLossOut(backend="triton")

    def step(rows):
        rows = rows.T.contiguous().T if columns_first else rows
        return module(2 * rows, labels) if name == "module" else supcon_loss(2 * rows, labels, backend="triton").mean()

    found = []
    for way in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaf = rows.clone().requires_grad_()
        loss = way(leaf)
        found.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(*found)


@needs_gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("width", [128, 512, 768])
def test_a_real_batch(dtype, width):
    labels = torch.randint(0, 100, (2048,)).repeat(2)
    rows = unit_rows(4096, width, dtype)
    for summation, denominator in OPTIONS:
        given = {"summation": summation, "denominator": denominator, "normalize": False, "scale": 3}
        assert_agrees(rows, labels, num_views=2, positives_cap=8, **given)
        assert_agrees(rows, torch.randint(0, 10, (4096,)), **given)


@needs_gpu
def test_auto_chooses_it():
    rows, labels = torch.randn(64, 16, device="cuda"), torch.randint(0, 9, (64,), device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        ours, auto = (supcon_loss(rows, labels, backend=backend).losses for backend in ("triton", "auto"))
    assert torch.equal(ours, auto)
    assert ours.dtype == torch.float32


@needs_gpu
def test_nothing_waits_for_the_device():
    rows = torch.randn(512, 64, device="cuda", requires_grad=True)
    labels = torch.randint(0, 9, (256,), device="cuda").repeat(2)

    def step():
        supcon_loss(rows, labels, num_views=2, positives_cap=4, backend="triton").mean().backward()

    step()  # compiles, and times block shapes
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_memory_is_linear():
    rows = F.normalize(torch.randn(65536, 128, device="cuda"), dim=1).bfloat16().requires_grad_()
    labels = torch.randint(0, 1000, (65536,), device="cuda")
    supcon_loss(rows[:512], labels[:512], backend="triton").mean().backward()  # the tuner allocates memory too
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    supcon_loss(rows, labels, backend="triton").mean().backward()
    assert (
        torch.cuda.max_memory_allocated() - before < 12 * rows.numel() * 4
    )  # 12 times the rows; the matrix: 512 times


@needs_gpu
def test_offsets_beyond_32_bits():
    """Read and write the last of 1,100,000 rows of 2,048 columns, at offsets beyond 2^31."""
    if torch.cuda.get_device_properties(0).total_memory < 70 * 2**30:
        pytest.skip("needs 70 GiB of GPU memory")
    rows = F.normalize(torch.randn(64, 2048, device="cuda"), dim=1).bfloat16()
    refs = F.normalize(torch.randn(1_100_000, 2048, device="cuda", dtype=torch.bfloat16), dim=1)
    labels, ref_labels = torch.arange(64, device="cuda"), torch.randint(0, 64, (len(refs),), device="cuda")
    options = {"ref_emb": refs.requires_grad_(), "ref_labels": ref_labels, "normalize": False, "backend": "triton"}
    losses, valid = supcon_loss(rows, labels, **options)
    s = (rows.float() @ refs.detach().float().T) / 0.1
    same = labels[:, None] == ref_labels
    right = s.logsumexp(dim=1) - (s * same).sum(dim=1) / same.sum(dim=1)
    assert valid.all()
    torch.testing.assert_close(losses, right, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(losses.sum(), refs)
    weights = (s.softmax(dim=1) - same / same.sum(dim=1, keepdim=True)) / 0.1
    last = slice(-1000, None)
    expected = weights[:, last].T @ rows.float()
    error = (gradient[last].float() - expected).norm(dim=1) / expected.norm(dim=1).max()
    assert error.max() < 2e-2
