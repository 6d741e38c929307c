"""Batches and comparisons that the tests of the supervised contrastive losses share."""

import itertools

import pytest
import torch

from helpers import supcon_oracle
from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon.options import SupConOptions
from pml_supcon.functional.supcon.problem import build_problem, check_batch

BACKENDS = ("dense", "tiled", "reference")
OPTIONS = list(itertools.product(("out", "in"), ("all", "one_positive", "negatives")))
OPTION_NAMES = ("summation", "denominator")

#: The specification's example: eight unit rows, view-major, two views of four samples.
ANGLES = torch.tensor([0.0, 0.3, 1.2, 2.5, 0.1, 0.5, 1.0, 2.2], dtype=torch.float64)
SPEC_ROWS = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
SPEC_LABELS = torch.tensor([0, 0, 1, 0])
SPEC_TEMPERATURE = 0.5

#: Its values: (summation, further options, has labels) -> by denominator.
SPEC_TABLE = [
    ("out", {}, True, (2.359539547, 1.659575810, 1.294213833)),
    ("out", {"positives_cap": 2}, True, (1.690569029, 1.178002136, 0.660373965)),
    ("out", {"positives_cap": 0}, True, (0.782550698, 0.782550698, 0.086588945)),
    ("out", {"contrast_mode": "one"}, True, (2.375369976, 1.620547795, 1.224926092)),
    ("in", {}, True, (1.773216302, 1.311649476, 0.707890589)),
    ("in", {"positives_cap": 2}, True, (1.406562922, 1.027867786, 0.376367858)),
    ("out", {}, False, (1.151914659, 1.151914659, 0.715061875)),
    ("in", {}, False, (1.151914659, 1.151914659, 0.715061875)),  # one positive each: L_in = L_out
]
SPEC_CASES = [
    pytest.param(summation, denominator, options, with_labels, value, id=f"{summation}-{options}-{denominator}-{tag}")
    for summation, options, with_labels, values in SPEC_TABLE
    for denominator, value in zip(("all", "one_positive", "negatives"), values, strict=True)
    for tag in (["labels"] if with_labels else ["simclr"])
]


def random_rows(number, width, *, dtype=torch.float64, scale=1.0):
    """Return rows of uneven length, so that tests fail without the normalisation."""
    return (torch.randn(number, width, dtype=dtype) * torch.linspace(0.5, 2, number, dtype=dtype)[:, None]) * scale


#: The largest errors of losses and of gradients, as `loss_error` and `gradient_error` measure them, against float64 on
#: the same values, which the dtype holds exactly; at a temperature of 0.1. A gradient comes back in the dtype; with
#: Triton it is a product of weights in the dtype too. `docs/functional/backends.md` shows this table.
TOLERANCE = {
    torch.float32: {"losses": 1e-5, "gradients": 1e-5},
    torch.float16: {"losses": 1e-5, "gradients": 1e-3},
    torch.bfloat16: {"losses": 1e-5, "gradients": 0.012},
}

#: The same of losses and gradients, for 16-bit rows that Triton normalises in float32 and rounds to float16.
NORMALISED_TOLERANCE = {torch.float16: 0.005, torch.bfloat16: 0.005}


def loss_error(ours, right):
    """Return the largest error of a loss, relative if the loss is above 1."""
    errors = (ours.detach().cpu().double() - right).abs() / right.abs().clamp(min=1)
    return errors.max().item() if len(errors) else 0.0


def gradient_error(ours, right, upstream):
    """Return the largest error of a row's gradient over the largest norm, or over the upstream gradient if larger.

    Gradients that cancel keep the rounding errors of their parts.
    """
    error = max((ours.cpu().double() - right).norm(dim=1).tolist(), default=0.0, key=lambda x: (x != x, x))
    length = max([*right.norm(dim=1).tolist(), *upstream.abs().tolist()], default=0.0)
    return error if error == 0 else error / length


def label_kinds(number):
    """Return labels of `number` samples: mixed with a singleton class, one class, only singletons."""
    mixed = torch.randint(0, max(2, number // 3), (number,))
    mixed[-1] = 99
    kinds = {"mixed": mixed, "one class": torch.full((number,), 7), "singletons": torch.arange(number).flip(0)}
    return kinds if number > 1 else {"one class": kinds["one class"]}


def problem_of(rows, labels, *, ref_emb=None, ref_labels=None, ref_starts_with_batch=False, num_views=None,
               indices_tuple=None, **options):  # fmt: skip
    """Return the problem that `supcon_loss` builds from the same arguments."""
    return build_problem(
        check_batch(rows, labels, num_views, options.get("target")), SupConOptions(**options), ref_emb=ref_emb,
        ref_labels=ref_labels, ref_starts_with_batch=ref_starts_with_batch, indices_tuple=indices_tuple,
    )  # fmt: skip


def loss_and_gradient(rows, labels, upstream=None, **options):
    """Return the per-anchor losses, and the gradient of their mean or for an upstream gradient."""
    rows = rows.detach().requires_grad_()
    terms = supcon_loss(rows, labels, **options)
    output = terms.mean() if upstream is None else terms.losses
    (gradient,) = torch.autograd.grad(output, rows, upstream)
    return terms.losses.detach(), gradient


def value_and_gradient(loss, embeddings, *args, **more):
    """Return the value of a loss, and its gradient for the embeddings."""
    embeddings = embeddings.detach().clone().requires_grad_()
    value = loss(embeddings, *args, **more)
    return value.detach(), torch.autograd.grad(value, embeddings)[0]


def listed_pairs(labels, contrasted_labels):
    """Return all pairs by labels, except of a row and the contrasted row of the same number."""
    same = labels[:, None] == contrasted_labels
    return (*torch.where(same & ~torch.eye(*same.shape).bool()), *torch.where(~same))


def assert_equals_oracle(terms, expected, what, tolerance=1e-10):
    """Compare `AnchorLosses` with the oracle's list, which has None for an anchor without a loss."""
    assert terms.valid.tolist() == [loss is not None for loss in expected], what
    for i, (ours, oracle) in enumerate(zip(terms.losses.tolist(), expected, strict=True)):
        right = 0.0 if oracle is None else oracle
        assert abs(ours - right) <= tolerance * max(1.0, abs(right)), f"{what}, anchor {i}: {ours} is not {right}"
    average = supcon_oracle.mean(expected)
    assert abs(terms.mean().item() - average) <= tolerance * max(1.0, abs(average)), what


def assert_gradients_equal(ours, right, *, rtol=1e-9, atol=1e-11):
    """Compare gradients in float64."""
    torch.testing.assert_close(ours, right, rtol=rtol, atol=atol)
