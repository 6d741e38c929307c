"""`SupConLossOut` and `SupConLossIn` as modules: options, references, pairs, copies, invalid input."""

import re
from dataclasses import fields
from inspect import signature

import pytest
import torch
from helpers import supcon_oracle
from helpers.supcon_batches import OPTION_NAMES, OPTIONS, random_rows
from pytorch_metric_learning.reducers import ClassWeightedReducer, MultipleReducers

from pml_supcon import losses
from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon import checks
from pml_supcon.functional.supcon.options import SupConOptions

LOSSES = {"out": losses.SupConLossOut, "in": losses.SupConLossIn}
PAIRS = (torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([0, 1]), torch.tensor([2, 3]))


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


@pytest.mark.parametrize("function", [supcon_loss, losses.SupConLossOut])
def test_the_defaults_are_those_of_the_options(function):
    given, options = signature(function).parameters, {field.name: field.default for field in fields(SupConOptions)}
    shared = given.keys() & options.keys()
    assert {name: given[name].default for name in shared} == {name: options[name] for name in shared}
    assert len(shared) == {supcon_loss: len(options), losses.SupConLossOut: len(options) - 3}[function]


def test_a_call_checks_each_argument_once(monkeypatch):
    rows, labels = random_rows(8, 3), torch.tensor([0, 0, 1, 1])
    loss, checked = losses.SupConLossOut(), []
    for owner, name in ((checks, "check_embeddings"), (checks, "check_labels"), (SupConOptions, "__post_init__")):
        real = getattr(owner, name)

        def counted(argument, *more, real=real, **options):
            checked.append(argument)
            return real(argument, *more, **options)

        monkeypatch.setattr(owner, name, counted)
    loss(rows.view(4, 2, 3), labels)
    assert checked == ["embeddings", "labels"]
    loss(rows[:4], labels, ref_emb=rows[4:], ref_labels=labels)
    assert sorted(checked[2:]) == ["embeddings", "labels", "ref_emb", "ref_labels"]


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
    # the same objects, which for PML means the batch itself: rows are not contrasted with themselves
    expect(loss(rows, labels, ref_emb=rows, ref_labels=labels), rows, labels)
    # references with equal rows
    references = {"ref_emb": rows, "ref_labels": labels.clone()}
    expect(loss(rows, labels, **references), rows, labels, **references)


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"temperature": 0}, ValueError, "`temperature` to be above 0, but got 0"),
    ({"positives_cap": 3, "num_views": 2}, ValueError, "multiple >= 0 of the number of views, 2, but got 3"),
    ({"num_views": 0, "positives_cap": 2}, ValueError, "`num_views` to be at least 1, but got 0"),
    ({"temprature": 0.1}, TypeError, "temprature"),
])  # fmt: skip
def test_invalid_options_raise_at_construction(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        losses.SupConLossOut(**options)


@pytest.mark.parametrize(("error", "message", "args"), [
    (ValueError, "`embeddings` to have shape (N, D) or (B, V, D), but got (4,)", (torch.zeros(4), torch.arange(4))),
    (ValueError, "`labels` to have shape (4,)", (torch.zeros(4, 2, 3), torch.arange(8))),
    (TypeError, "`labels` to hold integers, but got torch.float32", (torch.zeros(4, 2), torch.zeros(4))),
    (ValueError, "`labels` to have values, but got a te", (torch.zeros(4, 2), torch.arange(4, device="meta"))),
    (ValueError, "Expected `labels` or `indices_tuple`", (torch.zeros(4, 2),)),
    (ValueError, "together with `ref_labels`", (torch.zeros(4, 2), torch.arange(4), None, None, torch.arange(4))),
    (ValueError, "differ between views", (torch.zeros(4, 2), torch.arange(4) // 2)),
])  # fmt: skip
def test_invalid_input_raises(error, message, args):
    with pytest.raises(error, match=re.escape(message)):
        losses.SupConLossOut(num_views=2 if "views" in message else None)(*args)


@pytest.mark.parametrize(("labels", "given"), [([0, 3, 3, 0], "0 to 3"), ([0, -1, -1, 0], "-1 to 0")])
@pytest.mark.parametrize("wrapped", [False, True])
def test_labels_without_a_class_weight_are_named(labels, given, wrapped):
    reducer = ClassWeightedReducer(torch.tensor([1.0, 2.0, 3.0]))
    if wrapped:
        reducer = MultipleReducers({"loss": reducer})
    loss, rows = losses.SupConLossOut(reducer=reducer), torch.eye(4)
    assert loss(rows, torch.tensor([0, 2, 2, 0])).isfinite()
    with pytest.raises(ValueError, match=r"`labels` to be in \[0, 3\), the classes with a weight.*, but got " + given):
        loss(rows, torch.tensor(labels))


@pytest.mark.parametrize("name", ["distance", "reducer", "embedding_regularizer", "collect_stats"])
def test_parts_of_pml_have_their_types(name):
    with pytest.raises(TypeError, match=f"`{name}` to be"):
        losses.SupConLossOut(**{name: "mean"})
