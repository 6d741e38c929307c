"""`rank_n_contrast_loss` against plain loops, which reject wrong versions; its gradient, memory and errors."""

import json

import pytest
import torch
from helpers import rank_oracle
from helpers.peak_memory import measured
from helpers.supcon_batches import SPEC_ROWS

from pml_supcon.functional import rank_n_contrast, rank_n_contrast_loss

SPEC_AGES = torch.tensor([0, 1, 2.5, 4])
SPEC_VALUE = 1.278667834


def rows(number, width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, width, dtype=torch.float64, generator=generator)


def numbers(*shape, seed=0, values=4):
    """Return few whole numbers, so that many distances tie."""
    return torch.randint(0, values, shape, generator=torch.Generator().manual_seed(seed))


def oracle(z, y, **more):
    columns = {name: x.reshape(len(x), -1).tolist() for name, x in more.items() if isinstance(x, torch.Tensor)}
    losses = rank_oracle.anchor_losses(z.tolist(), y.reshape(len(y), -1).tolist(), **(more | columns))
    return torch.tensor(losses, dtype=torch.float64)


LABELS = {
    "whole numbers": lambda n: numbers(n),
    "small unsigned": lambda n: numbers(n).to(torch.uint8),  # their differences are negative too
    "floats": lambda n: numbers(n) / 2,
    "distinct": lambda n: torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    "half": lambda n: numbers(n).half(),
    "three columns": lambda n: numbers(n, 3),
    "columns of floats": lambda n: numbers(n, 2) / 4,
    "all equal": lambda n: torch.full((n,), 7),
}


def test_the_value_of_the_specification():
    for z, y in ((SPEC_ROWS, SPEC_AGES.repeat(2)), (torch.stack([SPEC_ROWS[:4], SPEC_ROWS[4:]], dim=1), SPEC_AGES)):
        assert rank_n_contrast_loss(z, y).mean().item() == pytest.approx(SPEC_VALUE, abs=1e-9)
    assert oracle(SPEC_ROWS, SPEC_AGES.repeat(2)).mean().item() == pytest.approx(SPEC_VALUE, abs=1e-9)


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("number", [2, 3, 13])
def test_equals_loops(kind, number):
    z, y = rows(number), LABELS[kind](number)
    for temperature in (2.0, 0.1):
        terms = rank_n_contrast_loss(z, y, temperature=temperature)
        torch.testing.assert_close(terms.losses, oracle(z, y, temperature=temperature), rtol=1e-10, atol=1e-12)
        assert terms.valid.all()
        given = {"ref_emb": rows(5, seed=1), "ref_labels": LABELS[kind](5), "temperature": temperature}
        torch.testing.assert_close(
            rank_n_contrast_loss(z, y, **given).losses, oracle(z, y, **given), rtol=1e-10, atol=0
        )


@pytest.mark.parametrize("mistake", rank_oracle.MISTAKES)
def test_a_wrong_version_differs(mistake):
    z, y = rows(13), numbers(13)
    ours = rank_n_contrast_loss(z, y).losses
    assert (oracle(z, y, mistake=mistake) - ours).abs().max() > 1e-2
    assert abs(oracle(z, y, mistake=mistake).mean() - ours.mean()) > 1e-3


def test_views_are_rows():
    views, y = rows(12).view(6, 2, 3), numbers(6, 2)
    expected = rank_n_contrast_loss(views.transpose(0, 1).flatten(0, 1), y.repeat(2, 1)).losses
    torch.testing.assert_close(rank_n_contrast_loss(views, y).losses, expected)


def test_only_the_order_of_the_label_distances_matters():
    z, y = rows(9), torch.tensor([0, 1, 3, 7, 20, 55, 146, 380, 993])  # all distances are distinct
    expected = rank_n_contrast_loss(z, y).losses
    shaken = y + 0.1 * torch.rand(9, generator=torch.Generator().manual_seed(0))
    others = {"shifted and scaled": 1000 - 3 * y, "twice": torch.stack([y, y], dim=1), "nearly": shaken}
    for name, other in others.items():
        torch.testing.assert_close(rank_n_contrast_loss(z, other).losses, expected, msg=name)
    assert (rank_n_contrast_loss(z, y.flip(0)).losses - expected).abs().max() > 1e-2


def test_large_integers_keep_their_differences():
    z, y = rows(9), numbers(9)
    for far in (2**60, -(2**60)):  # float64 has steps of 256 there
        torch.testing.assert_close(rank_n_contrast_loss(z, y + far).losses, rank_n_contrast_loss(z, y).losses)


@pytest.mark.parametrize("kind", LABELS)
def test_gradient_of_the_rows(kind):
    z, y = rows(7).requires_grad_(), LABELS[kind](7)
    assert torch.autograd.gradcheck(lambda z: rank_n_contrast_loss(z, y).losses, z)
    others = rows(4, seed=1).requires_grad_()
    given = {"ref_labels": LABELS[kind](4), "temperature": 0.5}
    assert torch.autograd.gradcheck(
        lambda z, others: rank_n_contrast_loss(z, y, ref_emb=others, **given).losses, (z, others)
    )
    views = rows(8, seed=2).view(4, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda views: rank_n_contrast_loss(views, LABELS[kind](4)).losses, views)


def test_coincident_rows_have_no_gradient_for_each_other():
    z = torch.zeros(3, 2, dtype=torch.float64).requires_grad_()
    rank_n_contrast_loss(z, torch.tensor([0, 1, 2])).mean().backward()
    assert torch.equal(z.grad, torch.zeros(3, 2))
    z = torch.cat([rows(4), rows(4)]).requires_grad_()
    rank_n_contrast_loss(z, numbers(8)).mean().backward()
    assert z.grad.isfinite().all()
    assert z.grad.abs().max() > 1e-3


def test_rows_far_from_each_other_and_from_the_origin():
    """`exp` of a distance of 10^4 is 0 in float64, and products of rows at 10^4 have no digits for their distances."""
    far = (1e4 * rows(9)).requires_grad_()
    losses = rank_n_contrast_loss(far, numbers(9)).losses
    assert losses.isfinite().all()
    assert torch.autograd.grad(losses.sum(), far)[0].isfinite().all()
    near = rows(9).float()
    torch.testing.assert_close(
        rank_n_contrast_loss(near + 1024, numbers(9)).losses,
        rank_n_contrast_loss((near + 1024).double() - 1024, numbers(9)).losses.float(),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("pairs", [1, 26, 50])
def test_chunks_of_any_size_give_the_same(pairs, monkeypatch):
    def step():
        z, others = rows(13).requires_grad_(), rows(5, seed=1).requires_grad_()
        own = rank_n_contrast_loss(z, numbers(13)).losses
        against = rank_n_contrast_loss(z, numbers(13), ref_emb=others, ref_labels=numbers(5)).losses
        weights = torch.arange(13.0, dtype=torch.float64)
        return own, against, *torch.autograd.grad((own * weights).sum() + (against * weights).sum(), (z, others))

    expected = step()
    monkeypatch.setattr(rank_n_contrast, "CHUNK_PAIRS", pairs)
    torch.testing.assert_close(step(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision(dtype):
    z = rows(13).to(dtype).requires_grad_()
    losses = rank_n_contrast_loss(z, numbers(13)).losses
    losses.sum().backward()
    exact = z.detach().double().requires_grad_()
    right = rank_n_contrast_loss(exact, numbers(13)).losses
    right.sum().backward()
    assert (losses.dtype, z.grad.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(losses.double(), right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(z.grad.double(), exact.grad, rtol=torch.finfo(dtype).eps * 4, atol=1e-4)


def test_batches_without_a_pair_have_the_loss_0():
    for number in (0, 1):
        z = rows(number).requires_grad_()
        terms = rank_n_contrast_loss(z, numbers(number))
        terms.mean().backward()
        assert (terms.mean(), terms.valid.tolist()) == (0, [False] * number)
        assert torch.equal(z.grad, torch.zeros(number, 3))
    assert rank_n_contrast_loss(rows(1), numbers(1), ref_emb=rows(1), ref_labels=numbers(1)).valid.all()


def test_another_similarity():
    z, y = rows(7).requires_grad_(), numbers(7)

    def cosine(a, b):
        return torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T

    assert torch.autograd.gradcheck(lambda z: rank_n_contrast_loss(z, y, similarity=cosine).losses, z)
    euclidean = rank_n_contrast_loss(z, y, similarity=lambda a, b: -(a[:, None] - b).norm(dim=-1)).losses
    torch.testing.assert_close(euclidean, rank_n_contrast_loss(z, y).losses)
    with pytest.raises(ValueError, match=r"Expected `similarity` to return a tensor \(anchors, rows\) = \(7, 7\)"):
        rank_n_contrast_loss(z, y, similarity=lambda a, b: a)


def test_a_second_derivative_is_refused():
    z = rows(4).requires_grad_()
    gradient = torch.autograd.grad(rank_n_contrast_loss(z, numbers(4)).mean(), z, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="`rank_n_contrast_loss` is differentiable once"):
        gradient.sum().backward()


@pytest.mark.slow
def test_under_the_compiler():
    z, y = rows(6).requires_grad_(), numbers(6)

    def step(z):
        return rank_n_contrast_loss(2 * z, y).mean()

    compiled = torch.compile(step, backend="eager")(z)
    torch.testing.assert_close(compiled, step(z))
    torch.testing.assert_close(torch.autograd.grad(compiled, z), torch.autograd.grad(step(z), z))


Z, Y = torch.eye(4), torch.arange(4.0)
NAN, INF = float("nan"), float("inf")
BAD = [
    (ValueError, r"`embeddings` to have shape \(N, D\) or \(B, V, D\), but got \(4,\)", (Z[0], Y), {}),
    (TypeError, "`embeddings` to be floating point, but got torch.int64", (Z.long(), Y), {}),
    (TypeError, "`labels` to be a torch.Tensor, but got list", (Z, [0, 1, 2, 3]), {}),
    (TypeError, "`labels` to hold integers or floating point, but got torch.bool", (Z, Y > 1), {}),
    (ValueError, r"`labels` to have shape \(4,\) or \(4, K\), the numbers of each .*, but got \(3,\)", (Z, Y[:3]), {}),
    (ValueError, r"`labels` to have shape .*, but got \(2, 2, 1\)", (Z, Y.view(2, 2, 1)), {}),
    (ValueError, r"`labels` to have shape .*, but got \(4, 0\)", (Z, torch.empty(4, 0)), {}),
    (ValueError, r"`labels` to hold finite .*, but got \[nan\] in row 2", (Z, torch.tensor([0, 1, NAN, 3])), {}),
    (ValueError, r"`labels` to hold finite .*, but got \[inf\] in row 0", (Z, torch.tensor([INF, 1, NAN, 3])), {}),
    (ValueError, "finite numbers below .* in row 0", (Z, torch.tensor([-(2**62), 0, 0, 2**62])), {}),
    (ValueError, "`temperature` to be above 0, but got 0", (Z, Y), {"temperature": 0}),
    (TypeError, "`similarity` to be callable, but got 'l2'", (Z, Y), {"similarity": "l2"}),
    (ValueError, "`ref_emb` and `ref_labels` together, but got `ref_emb` alone", (Z, Y), {"ref_emb": Z}),
    (ValueError, "`ref_emb` and `ref_labels` together, but got `ref_labels` alone", (Z, Y), {"ref_labels": Y}),
    (ValueError, "`ref_emb` to have the width", (Z, Y), {"ref_emb": Z[:, :2], "ref_labels": Y}),
    (ValueError, r"`ref_labels` to have shape \(4,\) or", (Z, Y), {"ref_emb": Z, "ref_labels": Y[:1]}),
    (
        ValueError,
        "`ref_labels` to have 1 numbers .*, but got 2",
        (Z, Y),
        {"ref_emb": Z, "ref_labels": Y.view(2, 2).repeat(2, 1)},
    ),
    (
        ValueError,
        r"`ref_labels` to hold finite .* \[nan\] in row 1",
        (Z, Y),
        {"ref_emb": Z, "ref_labels": Y.clone().index_fill_(0, torch.tensor([1]), NAN)},
    ),
    (ValueError, "`embeddings` to have values, but got a tensor on the meta device", (Z.to("meta"), Y.to("meta")), {}),
]


@pytest.mark.parametrize(("error", "match", "arguments", "more"), BAD)
def test_bad_input(error, match, arguments, more):
    with pytest.raises(error, match=match):
        rank_n_contrast_loss(*arguments, **more)


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, NAN, 3]), torch.tensor([-(2**62), 0, 0, 2**62])])
def test_labels_that_are_not_finite_give_nan_where_a_check_would_wait(labels, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # like a GPU: no check of values
    assert rank_n_contrast_loss(Z, labels).losses.isnan().all()
    assert rank_n_contrast_loss(Z, Y).losses.isfinite().all()


PROBE = """
import json, re, sys
from pathlib import Path
import torch
from pml_supcon.functional import rank_n_contrast, rank_n_contrast_loss

rank_n_contrast.CHUNK_PAIRS = 2**16

def resident(what):
    return 1024 * int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def peak(number):
    z, y = torch.randn(number, 8, requires_grad=True), torch.rand(number)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    rank_n_contrast_loss(z, y).mean().backward()
    return resident("VmHWM") - before

torch.set_num_threads(1)
peak(300)  # a first step loads modules
print(json.dumps([peak(number) for number in json.loads(sys.argv[1])]))
"""


@pytest.mark.slow
def test_memory_is_linear_in_the_rows():
    """One float32 matrix of all pairs would take 38 MB at 3,072 rows."""
    small, large = measured(PROBE, json.dumps([1024, 3072]))
    assert large < 16e6
    assert large - small < 4e6
