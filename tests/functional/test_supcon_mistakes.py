"""The comparisons of the other tests reject losses and gradients with a deliberate mistake."""

import pytest
import torch
from helpers import supcon_oracle, wrong_losses
from helpers.supcon_batches import assert_equals_oracle, assert_gradients_equal, loss_and_gradient, random_rows
from torch.autograd import gradcheck

import tests.functional.test_supcon_properties as properties
from pml_supcon.functional import AnchorLosses, supcon_loss

LABELS = torch.tensor([0, 0, 1, 2, 0, 0, 1, 2])


def arguments(options):
    """Return arguments of the oracle for the options of a mistake: eight rows, four samples with two views."""
    given = {key: value for key, value in options.items() if key not in ("references", "pairs")}
    if "references" in options:
        given |= {"ref_emb": random_rows(8, 3), "ref_labels": torch.tensor([0, 1, 1, 0, 2, 0, 1, 1])}
    if "pairs" in options:  # repeated: a positive of 0, a negative of 2; a positive of 1 is also a negative
        lists = [0, 0, 0, 1, 1, 2], [1, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2], [4, 5, 3, 6, 7, 7]
        given |= {"indices_tuple": tuple(map(torch.tensor, lists))}
    return {"rows": random_rows(8, 3), "temperature": 0.5, **given}


@pytest.mark.parametrize("summation", ["out", "in"])
@pytest.mark.parametrize(("mistake", "options"), wrong_losses.ANCHOR_MISTAKES, ids=lambda value: str(value))
def test_the_oracle_rejects_wrong_losses_of_anchors(mistake, options, summation):
    labels = torch.zeros(8, dtype=torch.int64) if mistake == "an anchor without negatives is valid" else LABELS
    given = {"labels": labels, "summation": summation, **arguments(options)}
    expected = supcon_oracle.anchor_losses(**given)
    assert_equals_oracle(wrong_losses.anchor_losses(**given), expected, "without a mistake the loss is right")
    with pytest.raises(AssertionError):
        assert_equals_oracle(wrong_losses.anchor_losses(**given, mistake=mistake), expected, mistake)


@pytest.mark.parametrize("mistake", wrong_losses.GRADIENT_MISTAKES)
def test_wrong_gradients_are_rejected(mistake):
    rows, upstream = random_rows(8, 3).requires_grad_(), torch.randn(8, dtype=torch.float64)
    _, right = loss_and_gradient(rows, LABELS, upstream, temperature=0.5, backend="reference")

    def gradient(mistake):
        losses = wrong_losses.WrongGradient.apply(rows, LABELS, 0.5, mistake)
        return torch.autograd.grad(losses, rows, upstream)[0]

    assert_gradients_equal(gradient(None), right)
    with pytest.raises(AssertionError):
        assert_gradients_equal(gradient(mistake), right)
    for given, accepted in ((None, True), (mistake, False)):
        losses = lambda rows, given=given: wrong_losses.WrongGradient.apply(rows, LABELS, 0.5, given)  # noqa: E731
        assert gradcheck(losses, (rows,), raise_exception=False) == accepted


def of_small_labels(rows, labels, **options):
    return supcon_loss(rows, labels.float().long(), **options)


def by_place(rows, labels, **options):
    losses, valid = supcon_loss(rows, labels, **options)
    return AnchorLosses(losses * torch.linspace(1, 1.1, len(losses), dtype=rows.dtype), valid)


def another_gradient(rows, labels, *, backend, **options):
    if backend == "tiled":  # the values are right
        rows = rows * 1.01 - rows.detach() * 0.01
    return supcon_loss(rows, labels, backend=backend, **options)


@pytest.mark.parametrize(
    ("test", "given", "wrong"),
    [
        (properties.test_loss_is_unchanged_by_rotation_and_renaming, ["in"], of_small_labels),
        (properties.test_loss_moves_with_its_rows, ["out"], by_place),
        (properties.test_backends_agree_on_values_and_gradients, ["in"], another_gradient),
    ],
)
def test_the_properties_reject_wrong_losses(monkeypatch, test, given, wrong):
    labels = torch.tensor([0, 0, 0, 1, 0, 1, 2])
    options = {"temperature": 0.5, "denominator": "all", "contrast_mode": "all", "positives_cap": None, "num_views": 1}
    check = test.hypothesis.inner_test

    def batch():
        return random_rows(7, 3), labels, {**options, "backend": "tiled"}, torch.Generator().manual_seed(0)

    check(batch(), *given)
    monkeypatch.setattr(properties, "supcon_loss", wrong)
    with pytest.raises(AssertionError):
        check(batch(), *given)
