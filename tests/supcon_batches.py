"""Batches and comparisons that the tests of the supervised contrastive losses share."""

import itertools

import pytest
import supcon_oracle
import torch

from pml_supcon.functional import supcon_loss

BACKENDS = ("tiled", "reference")
OPTIONS = list(itertools.product(("out", "in"), ("all", "one_positive", "negatives")))
OPTION_NAMES = ("summation", "denominator")

#: The specification's example: eight unit rows, view-major, two views of four samples.
ANGLES = torch.tensor([0.0, 0.3, 1.2, 2.5, 0.1, 0.5, 1.0, 2.2], dtype=torch.float64)
SPEC_ROWS = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
SPEC_LABELS = torch.tensor([0, 0, 1, 0])
SPEC_TEMPERATURE = 0.5

#: Its values, worked out there: (summation, further options, has labels) -> by denominator.
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
    """Rows of uneven length, so that a forgotten normalisation shows."""
    return (torch.randn(number, width, dtype=dtype) * torch.linspace(0.5, 2, number, dtype=dtype)[:, None]) * scale


def label_kinds(number):
    """Labels of a batch of `number` samples: mixed with a singleton class, one class, only singletons."""
    mixed = torch.randint(0, max(2, number // 3), (number,))
    mixed[-1] = 99
    kinds = {"mixed": mixed, "one class": torch.full((number,), 7), "singletons": torch.arange(number).flip(0)}
    return kinds if number > 1 else {"one class": kinds["one class"]}


def loss_and_gradient(rows, labels, upstream=None, **options):
    """Per-anchor losses, and the gradient of their mean or under an upstream gradient."""
    rows = rows.detach().requires_grad_()
    terms = supcon_loss(rows, labels, **options)
    output = terms.mean() if upstream is None else terms.losses
    (gradient,) = torch.autograd.grad(output, rows, upstream)
    return terms.losses.detach(), gradient


def assert_equals_oracle(terms, expected, what, tolerance=1e-10):
    """Compare `AnchorLosses` with the oracle's list, in which None stands for an anchor without a loss."""
    assert terms.valid.tolist() == [loss is not None for loss in expected], what
    for i, (ours, oracle) in enumerate(zip(terms.losses.tolist(), expected, strict=True)):
        right = 0.0 if oracle is None else oracle
        assert abs(ours - right) <= tolerance * max(1.0, abs(right)), f"{what}, anchor {i}: {ours} is not {right}"
    assert abs(terms.mean().item() - supcon_oracle.mean(expected)) <= tolerance * 10, what
