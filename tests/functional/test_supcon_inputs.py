"""Invalid arguments of `supcon_loss` raise errors that name the expected and the given value."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.supcon_batches import BACKENDS

from pml_supcon.functional import supcon_loss

ROWS = torch.randn(6, 3)
VIEWS = torch.randn(3, 2, 3)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
INDEX = torch.tensor([0, 1])
PAIRS = (INDEX, INDEX, INDEX, INDEX)
SAMPLES = {"embeddings": VIEWS, "labels": LABELS[:3]}
REFS = {"ref_emb": ROWS, "ref_labels": LABELS}
CAP = {"num_views": 2, "positives_cap": 2}


def assert_raises(error, message, *, embeddings=ROWS, labels=LABELS, **options):
    with pytest.raises(error, match=re.escape(message)):
        supcon_loss(embeddings, labels, **options)


@pytest.mark.parametrize(("error", "expected", "given"), [
    (ValueError, "to have shape (N, D) or (B, V, D), but got (6,)", torch.zeros(6)),
    (ValueError, "to have shape (N, D) or (B, V, D), but got (2, 3, 4, 5)", torch.zeros(2, 3, 4, 5)),
    (ValueError, "to have at least one column and view, but got shape (6, 0)", torch.zeros(6, 0)),
    (ValueError, "to have at least one column and view, but got shape (6, 0, 3)", torch.zeros(6, 0, 3)),
    (TypeError, "to be floating point, but got torch.int64", ROWS.long()),
    (TypeError, "to be floating point, but got torch.complex64", ROWS.to(torch.complex64)),
    (TypeError, "to be one of float16, bfloat16, float32, float64, but got torch.float8_e5m2",
     ROWS.to(torch.float8_e5m2)),
    (TypeError, "to be a dense tensor, but got layout torch.sparse_coo", ROWS.to_sparse()),
    (TypeError, "to be a torch.Tensor, but got list", [[1.0, 2.0]]),
])  # fmt: skip
def test_embeddings(error, expected, given):
    assert_raises(error, f"Expected argument `embeddings` {expected}", embeddings=given)


@pytest.mark.parametrize(("error", "expected", "given"), [
    (TypeError, "to be a torch.Tensor, but got list", [0, 1, 2, 0, 1, 2]),
    (TypeError, "to hold integers, but got torch.float32", LABELS.float()),
    (TypeError, "to hold integers, but got torch.bool", LABELS.bool()),
    (TypeError, "to hold integers, but got torch.complex64", LABELS.to(torch.complex64)),
    (ValueError, "to have shape (6,), one label for each embedding, but got (5,)", LABELS[:5]),
    (ValueError, "to have shape (6,), one label for each embedding, but got (6, 1)", LABELS[:, None]),
    (ValueError, "to have values, but got a tensor on the meta device", LABELS.to("meta")),
])  # fmt: skip
def test_labels(error, expected, given):
    assert_raises(error, f"Expected argument `labels` {expected}", labels=given)
    if not isinstance(given, list):
        assert_raises(error, f"Expected argument `ref_labels` {expected}", ref_emb=ROWS, ref_labels=given)


@pytest.mark.parametrize(("message", "options"), [
    ("`labels` to have shape (3,), one label for each embedding, but got (6,)", {"embeddings": VIEWS}),
    ("Expected `labels` or `indices_tuple`", {"labels": None}),
    ("Expected `labels` or `indices_tuple`", {"embeddings": VIEWS, "labels": None, **REFS}),
    ("Expected `labels` to repeat the labels of the first view for each of the 2 views",
     {"labels": torch.tensor([0, 0, 1, 1, 2, 2]), "num_views": 2}),
    ("`num_views` to be at least 1, but got 0", {"num_views": 0}),
    ("num_views=4 views of every sample, but 6 is not a multiple of 4", {"num_views": 4}),
    ("(B, V, D) with V = num_views = 3, but got (3, 2, 3)", {**SAMPLES, "num_views": 3}),
    ("Expected (B, V, D) embeddings or `num_views` with `positives_cap`", {"positives_cap": 2}),
    ("Expected (B, V, D) embeddings or `num_views` with `contrast_mode='one'`", {"contrast_mode": "one"}),
    ("multiple >= 0 of the number of views, 2, but got 3", {"num_views": 2, "positives_cap": 3}),
    ("multiple >= 0 of the number of views, 2, but got 3", {**SAMPLES, "positives_cap": 3}),
    ("multiple >= 0 of the number of views, but got -2", {"num_views": 1, "positives_cap": -2}),
    ("multiple >= 0 of the number of views, but got True", {"num_views": 1, "positives_cap": True}),
    ("multiple >= 0 of the number of views, but got 2.0", {"num_views": 1, "positives_cap": 2.0}),
    ("Expected no `ref_emb` with `positives_cap`", {**REFS, **CAP}),
    ("Expected no `indices_tuple` with `positives_cap`", {"indices_tuple": PAIRS, **CAP}),
    ("Expected `contrast_mode` to be 'all' with `indices_tuple`",
     {**SAMPLES, "indices_tuple": PAIRS, "contrast_mode": "one"}),
])  # fmt: skip
def test_views_and_caps(message, options):
    assert_raises(ValueError, message, **options)


@pytest.mark.parametrize(("error", "message", "options"), [
    (ValueError, "Expected `ref_labels` together with `ref_emb`", {"ref_emb": ROWS}),
    (ValueError, "Expected `ref_emb` together with `ref_labels`", {"ref_labels": LABELS}),
    (ValueError, "`ref_emb` to have shape (N, D), but got (3, 2, 3)", {**REFS, "ref_emb": VIEWS}),
    (TypeError, "`ref_emb` to be a torch.Tensor, but got list", {**REFS, "ref_emb": [[1.0]]}),
    (ValueError, "`ref_emb` to have the width of the embeddings, 3, but got 4", {**REFS, "ref_emb": torch.ones(6, 4)}),
    (ValueError, "`ref_emb` to have the dtype of the embeddings, torch.float32", {**REFS, "ref_emb": ROWS.double()}),
    (ValueError, "`ref_emb` to have the device of the embeddings, cpu", {**REFS, "ref_emb": ROWS.to("meta")}),
    (ValueError, "but got no `ref_emb`", {"ref_starts_with_batch": True}),
    (ValueError, "but got `indices_tuple`", {**REFS, "ref_starts_with_batch": True, "indices_tuple": PAIRS}),
    (ValueError, "to start with the 6 rows of the batch (`ref_starts_with_batch`), but it has 5 rows",
     {"ref_emb": ROWS[:5], "ref_labels": LABELS[:5], "ref_starts_with_batch": True}),
    (ValueError, "but row 0 has 2 there and 0 in the batch",
     {"ref_emb": ROWS, "ref_labels": LABELS.flip(0), "ref_starts_with_batch": True}),
])  # fmt: skip
def test_references(error, message, options):
    assert_raises(error, message, **options)


@pytest.mark.parametrize(("error", "message", "value"), [
    (TypeError, "to be a sequence of tensors, but got int", 5),
    (TypeError, "to be a sequence of tensors, but got Tensor", torch.zeros(3, 2, dtype=torch.int64)),
    (ValueError, "to hold 3 (triplets) or 4 (pairs) index tensors, but got 2", PAIRS[:2]),
    (TypeError, "one-dimensional int64 tensors, but got (2, 2) torch.int64", (INDEX, INDEX, INDEX.repeat(2, 1))),
    (TypeError, "one-dimensional int64 tensors, but got (2,) torch.bool", (INDEX, INDEX, INDEX.bool())),
    (TypeError, "one-dimensional int64 tensors, but got <class 'list'>", (INDEX, INDEX, [0, 1])),
    (ValueError, "but got 2 and 1 for positives, 2 and 2 for negatives", (INDEX, INDEX[:1], INDEX, INDEX)),
    (ValueError, "but got 2 and 2 for positives, 2 and 1 for negatives", (INDEX, INDEX, INDEX[:1])),
])  # fmt: skip
def test_index_tuples(error, message, value):
    assert_raises(error, message, indices_tuple=value)


@pytest.mark.parametrize("wrong", [-1, len(ROWS)])
@pytest.mark.parametrize(("place", "name"), [*enumerate(["anchors", "positives", "anchors", "negatives"])])
def test_row_numbers_out_of_range(place, name, wrong):
    pairs = list(PAIRS)
    pairs[place] = torch.tensor([0, wrong])
    assert_raises(
        IndexError, f"the {name} in `indices_tuple` to be row numbers in [0, {len(ROWS)})", indices_tuple=pairs
    )


@pytest.mark.parametrize(("error", "message", "options"), [
    (ValueError, "`temperature` to be above 0, but got 0", {"temperature": 0}),
    (ValueError, "`temperature` to be at least 1.1754943508222875e-38, but got 5e-324", {"temperature": 5e-324}),
    (ValueError, "`temperature` to be a finite number, but got nan", {"temperature": float("nan")}),
    (TypeError, "`temperature` to be a number, but got '0.1'", {"temperature": "0.1"}),
    (ValueError, "but got 'outside'; did you mean 'out'", {"summation": "outside"}),
    (ValueError, "but got 'negative'; did you mean 'negatives'", {"denominator": "negative"}),
    (ValueError, "but got 'ones'; did you mean 'one'", {"contrast_mode": "ones"}),
    (ValueError, "but got 'tile'; did you mean 'tiled'", {"backend": "tile"}),
    (ValueError, "`backend` to be one of ['auto', 'dense', 'triton', 'tiled', 'reference'], but got 3", {"backend": 3}),
    (TypeError, "`num_views` to be an integer, but got 2.0", {"num_views": 2.0}),
    (ValueError, "backend='tiled' cannot do this: a similarity", {"similarity": torch.cdist, "backend": "tiled"}),
    (TypeError, "`similarity` to be None or a function of two tensors, but got str", {"similarity": "cosine"}),
    (ValueError, "(anchors, rows) = (6, 6), but got (6,)", {"similarity": lambda a, b: (a @ b.T).sum(dim=1)}),
    (ValueError, "(anchors, rows) = (6, 6), but got float", {"similarity": lambda a, b: 1.0}),
    (ValueError, "= (3, 6), but got (6, 6)",
     {"num_views": 2, "contrast_mode": "one", "similarity": lambda a, b: b @ b.T}),
])  # fmt: skip
def test_options(error, message, options):
    assert_raises(error, message, **options)


@pytest.mark.parametrize("temperature", [Fraction(1, 5), np.float64(0.2), np.float32(0.2)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_temperatures_of_any_real_type(backend, temperature):
    for scale in (False, True):
        options = {"scale_by_temperature": scale, "backend": backend}
        ours = supcon_loss(ROWS, LABELS, temperature=temperature, **options)
        torch.testing.assert_close(ours.losses, supcon_loss(ROWS, LABELS, temperature=0.2, **options).losses)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_meta_device_gives_shapes_and_dtypes(backend):
    rows, labels = ROWS.to("meta").requires_grad_(), LABELS.to("meta")
    terms = supcon_loss(rows, labels, backend=backend)
    assert (terms.losses.shape, terms.valid.shape, terms.losses.device.type) == ((6,), (6,), "meta")
    terms.mean().backward()
    assert rows.grad.shape == ROWS.shape


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        supcon_loss(ROWS, LABELS, ROWS)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("summation", ["out", "in"])
def test_infinite_rows_give_what_the_definition_gives(backend, summation):
    def loss(rows, labels, **options):
        given = torch.tensor(rows)[:, None]
        options = {"normalize": False, "temperature": 1.0, "summation": summation, "backend": backend} | options
        return supcon_loss(given, labels, **options).losses.tolist()

    inf, labels = float("inf"), torch.tensor([0, 0, 1])
    # a negative of similarity -inf adds exp(-inf) = 0; the anchor -inf has no positive
    assert loss([1.0, 1.0, -inf], labels) == [0, 0, 0]
    # a negative of +inf, an only positive of -inf, and NaN
    for rows in ([1.0, 1.0, inf], [1.0, -inf, -1.0], [float("nan"), 1.0, 1.0]):
        assert not math.isfinite(loss(rows, labels)[0])
    # a row that is in no pair is not used
    pairs = [torch.tensor([each]) for each in (0, 1, 1, 0)]
    assert math.isfinite(loss([1.0, 1.0, inf], None, indices_tuple=pairs)[0])


@pytest.mark.parametrize("name", ["normalize", "scale_by_temperature", "ref_starts_with_batch"])
@pytest.mark.parametrize("value", ["", "False", 0, None, torch.empty(0), torch.tensor([True, False])])
def test_switches_are_true_or_false(name, value):
    for number in (len(ROWS), 0):
        with pytest.raises(TypeError, match=f"`{name}` to be True or False"):
            supcon_loss(ROWS[:number], LABELS[:number], **{name: value})
