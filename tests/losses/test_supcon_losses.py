"""`SupConLossOut` and `SupConLossIn` as modules: the specification's values, options, bad input, copies."""

import copy
import pickle
import re

import pytest
import torch
from helpers import supcon_oracle
from helpers.supcon_batches import (
    BACKENDS,
    OPTION_NAMES,
    OPTIONS,
    SPEC_CASES,
    SPEC_LABELS,
    SPEC_ROWS,
    SPEC_TEMPERATURE,
    random_rows,
)

from pml_supcon import losses
from pml_supcon.functional import supcon_loss

LOSSES = {"out": losses.SupConLossOut, "in": losses.SupConLossIn}
PAIRS = (torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([0, 1]), torch.tensor([2, 3]))


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize(("summation", "denominator", "options", "with_labels", "value"), SPEC_CASES)
def test_table_of_the_specification(backend, summation, denominator, options, with_labels, value):
    given = {"temperature": SPEC_TEMPERATURE, "denominator": denominator, "backend": backend, **options}
    samples = SPEC_LABELS if with_labels else None
    rows = LOSSES[summation](num_views=2, **given)(SPEC_ROWS, None if samples is None else samples.repeat(2))
    views = LOSSES[summation](**given)(SPEC_ROWS.view(2, 4, 2).transpose(0, 1), samples)
    for loss in (rows, views):
        assert loss.shape == ()
        assert loss.dtype == torch.float64
        assert loss.item() == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("contrast_mode", ["all", "one"])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_every_option_reaches_the_loss(summation, denominator, contrast_mode):
    rows, labels = random_rows(12, 3), torch.tensor([0, 0, 1, 0, 1, 2]).repeat(2)
    given = {"num_views": 2, "denominator": denominator, "contrast_mode": contrast_mode, "temperature": 0.3}
    for cap in (None, 2):
        oracle = supcon_oracle.anchor_losses(rows, labels, summation=summation, positives_cap=cap, **given)
        expected = supcon_oracle.mean(oracle)
        for scale in (False, True):
            loss = LOSSES[summation](positives_cap=cap, scale_by_temperature=scale, **given)(rows, labels)
            assert loss.item() == pytest.approx(expected * (0.3 if scale else 1), abs=1e-10)


@pytest.mark.parametrize("loss_class", LOSSES.values())
def test_defaults(loss_class):
    rows, labels = random_rows(8, 3), torch.tensor([0, 0, 1, 1, 0, 0, 1, 2])
    expected = supcon_loss(rows, labels, temperature=0.1, summation=loss_class.summation).mean()
    torch.testing.assert_close(loss_class()(rows, labels), expected)
    torch.testing.assert_close(loss_class(0.1)(rows, labels=labels), expected)


@pytest.mark.parametrize("loss_class", LOSSES.values())
def test_references_and_listed_pairs(loss_class):
    rows, labels = random_rows(6, 3), torch.tensor([0, 0, 1, 1, 0, 2])
    refs, ref_labels = random_rows(5, 3), torch.tensor([0, 1, 2, 2, 0])
    loss = loss_class(temperature=0.3)
    given = {"summation": loss_class.summation, "temperature": 0.3}

    def expect(value, *args, **options):
        assert value.item() == pytest.approx(supcon_oracle.mean(supcon_oracle.anchor_losses(*args, **options, **given)))

    references = {"ref_emb": refs, "ref_labels": ref_labels}
    expect(loss(rows, labels, **references), rows, labels, **references)
    expect(loss(rows, labels, None, refs, ref_labels), rows, labels, **references)
    expect(loss(rows, labels, PAIRS), rows, labels, indices_tuple=PAIRS)
    expect(loss(rows, indices_tuple=PAIRS), rows, labels, indices_tuple=PAIRS)
    expect(loss(rows, indices_tuple=PAIRS, ref_emb=refs), rows, labels, indices_tuple=PAIRS, ref_emb=refs)
    # the batch itself as its references, in PML's way of saying so: rows are not contrasted with themselves
    expect(loss(rows, labels, ref_emb=rows, ref_labels=labels), rows, labels)
    # and as references that happen to hold the same rows
    references = {"ref_emb": rows, "ref_labels": labels.clone()}
    expect(loss(rows, labels, **references), rows, labels, **references)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss_class", LOSSES.values())
def test_half_precision_gives_a_float32_loss(loss_class, dtype):
    rows, labels = torch.randn(8, 4).to(dtype).requires_grad_(), torch.arange(8) // 2
    loss = loss_class()(rows, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert rows.grad.dtype == dtype
    torch.testing.assert_close(loss, loss_class()(rows.float(), labels))


@pytest.mark.parametrize("loss_class", LOSSES.values())
def test_autocast_gives_the_float32_loss(loss_class):
    rows, labels = torch.randn(8, 4), torch.arange(8) // 2
    expected = loss_class()(rows, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss_class()(rows, labels), expected)


@pytest.mark.parametrize("loss_class", LOSSES.values())
def test_copies_compute_the_same(loss_class):
    loss = loss_class(0.2, denominator="negatives", contrast_mode="one", positives_cap=2, num_views=2)
    rows, labels = random_rows(12, 3), torch.tensor([0, 0, 1, 0, 1, 1]).repeat(2)
    expected = loss(rows, labels)
    fresh = loss_class(0.2, denominator="negatives", contrast_mode="one", positives_cap=2, num_views=2)
    fresh.load_state_dict(loss.state_dict())
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), fresh):
        assert torch.equal(other(rows, labels), expected)


def test_the_package_names_the_losses():
    assert {"SupConLossOut", "SupConLossIn"} <= set(losses.__all__)
    for name in losses.__all__:
        assert getattr(losses, name).__name__ == name


@pytest.mark.parametrize("loss_class", LOSSES.values())
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "`temperature` to be above 0, but got 0"),
        ({"denominator": "positives"}, "`denominator` to be one of"),
        ({"contrast_mode": "every"}, "`contrast_mode` to be one of"),
        ({"backend": "refrence"}, "did you mean 'reference'?"),
        ({"positives_cap": 3, "num_views": 2}, "multiple >= 0 of the number of views, 2, but got 3"),
        ({"num_views": 0, "positives_cap": 2}, "`num_views` to be at least 1, but got 0"),
    ],
)
def test_wrong_options_are_refused_when_the_loss_is_made(loss_class, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        loss_class(**options)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="temprature"):
        losses.SupConLossOut(temprature=0.1)


@pytest.mark.parametrize(
    ("error", "message", "args"),
    [
        (ValueError, "`embeddings` to have shape (N, D) or (B, V, D), but got (4,)", (torch.zeros(4), torch.arange(4))),
        (TypeError, "`embeddings` to be floating point", (torch.zeros(4, 2, dtype=torch.int64), torch.arange(4))),
        (ValueError, "`labels` to have shape (4,)", (torch.zeros(4, 2), torch.arange(5))),
        (ValueError, "`labels` to have shape (4,)", (torch.zeros(4, 2, 3), torch.arange(8))),
        (ValueError, "`labels` to have shape (4,)", (torch.zeros(4, 2), torch.zeros(4, 1, dtype=torch.int64))),
        (TypeError, "`labels` to hold integers, but got torch.float32", (torch.zeros(4, 2), torch.zeros(4))),
        (ValueError, "on the device of the embeddings, cpu, but got meta",
         (torch.zeros(4, 2), torch.arange(4, device="meta"))),
        (ValueError, "Expected `labels` or `indices_tuple`", (torch.zeros(4, 2),)),
        (ValueError, "together with `ref_labels`", (torch.zeros(4, 2), torch.arange(4), None, None, torch.arange(4))),
    ],
)  # fmt: skip
def test_wrong_input_is_refused(error, message, args):
    with pytest.raises(error, match=re.escape(message)):
        losses.SupConLossOut()(*args)


def test_options_that_need_the_views_are_refused_without():
    rows, labels = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    for options in ({"positives_cap": 2}, {"contrast_mode": "one"}):
        loss = losses.SupConLossOut(**options)
        with pytest.raises(ValueError, match=r"Expected \(B, V, D\) embeddings or `num_views`"):
            loss(rows, labels)
        assert loss(rows.view(2, 2, 2), labels[:2]).isfinite()
    with pytest.raises(ValueError, match="multiple >= 0 of the number of views, 2, but got 3"):
        losses.SupConLossOut(positives_cap=3)(rows.view(2, 2, 2), labels[:2])
    with pytest.raises(ValueError, match="differ between views"):
        losses.SupConLossOut(num_views=2)(rows, torch.tensor([0, 0, 1, 1]))
