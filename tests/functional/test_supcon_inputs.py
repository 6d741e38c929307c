"""What `supcon_loss` refuses, and that it says what it expected and what came."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from pml_supcon.functional import supcon_loss

ROWS = torch.randn(6, 3)
VIEWS = torch.randn(3, 2, 3)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
INDEX = torch.tensor([0, 1])
PAIRS = (INDEX, INDEX, INDEX, INDEX)


def refused(error, message, embeddings=ROWS, labels=LABELS, **options):
    with pytest.raises(error, match=re.escape(message)):
        supcon_loss(embeddings, labels, **options)


@pytest.mark.parametrize("shape", [(6,), (2, 3, 4, 5), ()])
def test_embeddings_of_another_rank(shape):
    refused(ValueError, f"`embeddings` to have shape (N, D) or (B, V, D), but got {shape}", torch.zeros(shape))


@pytest.mark.parametrize("shape", [(6, 0), (6, 0, 3), (6, 2, 0)])
def test_embeddings_without_columns_or_views(shape):
    refused(ValueError, f"at least one column and view, but got shape {shape}", torch.zeros(shape), torch.arange(6))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_embeddings_that_are_not_floating_point(dtype):
    refused(TypeError, f"`embeddings` to be floating point, but got {dtype}", ROWS.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_embeddings_of_a_dtype_that_is_too_small(dtype):
    message = f"to be one of float16, bfloat16, float32, float64, but got {dtype}"
    refused(TypeError, f"`embeddings` {message}", ROWS.to(dtype))
    refused(TypeError, f"`ref_emb` {message}", ref_emb=ROWS.to(dtype), ref_labels=LABELS)


def test_embeddings_that_are_sparse():
    refused(TypeError, "`embeddings` to be a dense tensor, but got layout torch.sparse_coo", ROWS.to_sparse())


def test_what_is_no_tensor():
    refused(TypeError, "`embeddings` to be a torch.Tensor, but got list", [[1.0, 2.0]])
    refused(TypeError, "`labels` to be a torch.Tensor, but got list", labels=[0, 1, 2, 0, 1, 2])
    refused(TypeError, "`labels` to be a torch.Tensor, but got list", VIEWS, labels=[0, 1, 2])
    refused(TypeError, "`ref_emb` to be a torch.Tensor, but got list", ref_emb=[[1.0]], ref_labels=LABELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.complex64])
def test_labels_that_are_not_integers(dtype):
    refused(TypeError, f"`labels` to hold integers, but got {dtype}", labels=LABELS.to(dtype))
    refused(TypeError, f"`labels` to hold integers, but got {dtype}", VIEWS, LABELS[:3].to(dtype))


@pytest.mark.parametrize("shape", [(5,), (7,), (6, 1), (1, 6), ()])
def test_labels_of_another_shape(shape):
    refused(ValueError, f"`labels` to have shape (6,), one label for each embedding, but got {shape}",
            labels=torch.zeros(shape, dtype=torch.int64))  # fmt: skip


def test_labels_of_rows_where_labels_of_samples_belong():
    refused(ValueError, "`labels` to have shape (3,), one label for each embedding, but got (6,)", VIEWS, LABELS)


def test_labels_on_another_device():
    message = "to be on the device of the embeddings, cpu, but got meta"
    refused(ValueError, f"`labels` {message}", labels=LABELS.to("meta"))
    refused(ValueError, f"`labels` {message}", VIEWS, LABELS[:3].to("meta"))
    refused(ValueError, f"`ref_labels` {message}", ref_emb=ROWS, ref_labels=LABELS.to("meta"))


@pytest.mark.parametrize(
    ("error", "temperature", "expected"),
    [
        (ValueError, 0, "above 0"),
        (ValueError, -0.1, "above 0"),
        (ValueError, float("nan"), "a finite number"),
        (ValueError, float("inf"), "a finite number"),
        (TypeError, "0.1", "a number"),
    ],
)
def test_temperature(error, temperature, expected):
    refused(error, f"`temperature` to be {expected}, but got {temperature!r}", temperature=temperature)


@pytest.mark.parametrize(
    ("option", "value", "nearest"),
    [
        ("summation", "outside", "out"),
        ("denominator", "one_positiv", "one_positive"),
        ("denominator", "negative", "negatives"),
        ("contrast_mode", "al", "all"),
        ("contrast_mode", "ones", "one"),
        ("backend", "tile", "tiled"),
        ("backend", "Reference", "reference"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(option, value, nearest):
    with pytest.raises(ValueError, match=f"`{option}` to be one of .*, but got '{value}'; did you mean '{nearest}'"):
        supcon_loss(ROWS, LABELS, **{option: value})


@pytest.mark.parametrize("option", ["summation", "denominator", "contrast_mode", "backend"])
@pytest.mark.parametrize("value", ["qzx", 3])
def test_names_that_are_near_to_nothing(option, value):
    with pytest.raises(ValueError, match=f"`{option}` to be one of .*, but got {value!r}$"):
        supcon_loss(ROWS, LABELS, **{option: value})


def test_caps_that_are_no_multiple_of_the_views():
    message = "`positives_cap` to be None or a multiple >= 0 of the number of views, 2, but got 3"
    refused(ValueError, message, num_views=2, positives_cap=3)
    refused(ValueError, message, VIEWS, LABELS[:3], positives_cap=3)


@pytest.mark.parametrize("cap", [-2, True, 2.0])
def test_caps_that_are_none_whatever_the_views(cap):
    message = f"`positives_cap` to be None or a multiple >= 0 of the number of views, but got {cap!r}"
    refused(ValueError, message, positives_cap=cap)
    refused(ValueError, message, num_views=1, positives_cap=cap)


def test_a_cap_that_has_nothing_to_count_in():
    cap = {"num_views": 2, "positives_cap": 2}
    refused(ValueError, "Expected no `ref_emb` with `positives_cap`", ref_emb=ROWS, ref_labels=LABELS, **cap)
    refused(ValueError, "Expected no `indices_tuple` with `positives_cap`", indices_tuple=PAIRS, **cap)


def test_options_that_need_the_views():
    message = "Expected (B, V, D) embeddings or `num_views` with "
    refused(ValueError, f"{message}`positives_cap`", positives_cap=2)
    refused(ValueError, f"{message}`contrast_mode='one'`", contrast_mode="one")
    refused(ValueError, "Expected `labels` or `indices_tuple`", labels=None)
    refused(ValueError, "Expected `labels` or `indices_tuple`", VIEWS, None, ref_emb=ROWS, ref_labels=LABELS)


def test_numbers_of_views_that_are_none():
    refused(ValueError, "`num_views` to be at least 1, but got 0", num_views=0)
    refused(TypeError, "`num_views` to be an integer, but got 2.0", num_views=2.0)


def test_numbers_of_views_that_do_not_fit():
    refused(ValueError, "num_views=4 views of every sample, but 6 is not a multiple of 4", num_views=4)
    refused(ValueError, "(B, V, D) with V = num_views = 3, but got (3, 2, 3)", VIEWS, LABELS[:3], num_views=3)


def test_labels_that_differ_between_views():
    message = "Expected `labels` to repeat the labels of the first view for each of the 2 views"
    refused(ValueError, message, labels=torch.tensor([0, 0, 1, 1, 2, 2]), num_views=2)


def test_references_that_do_not_fit():
    refs = {"ref_emb": ROWS, "ref_labels": LABELS}
    refused(ValueError, "Expected `ref_labels` together with `ref_emb`", ref_emb=ROWS)
    refused(ValueError, "Expected `ref_emb` together with `ref_labels`", ref_labels=LABELS)
    refused(ValueError, "`ref_emb` to have shape (N, D), but got (3, 2, 3)", **{**refs, "ref_emb": VIEWS})
    refused(
        ValueError,
        "`ref_emb` to have the width of the embeddings, 3, but got 4",
        **{**refs, "ref_emb": torch.zeros(6, 4)},
    )
    refused(ValueError, "`ref_emb` to have the dtype of the embeddings, torch.float32, but got torch.float64",
            **{**refs, "ref_emb": ROWS.double()})  # fmt: skip
    refused(
        ValueError,
        "`ref_emb` to have the device of the embeddings, cpu, but got meta",
        **{**refs, "ref_emb": ROWS.to("meta")},
    )
    refused(TypeError, "`ref_emb` to be floating point, but got torch.int64", **{**refs, "ref_emb": ROWS.long()})
    refused(ValueError, "`ref_labels` to have shape (6,)", **{**refs, "ref_labels": LABELS[:5]})
    refused(TypeError, "`ref_labels` to hold integers, but got torch.float32", **{**refs, "ref_labels": LABELS.float()})


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_index_tuples_of_another_length(number):
    message = f"`indices_tuple` to hold 3 (triplets) or 4 (pairs) index tensors, but got {number}"
    refused(ValueError, message, indices_tuple=(INDEX,) * number)


@pytest.mark.parametrize("value", [5, iter([INDEX] * 3), torch.zeros(3, 2, dtype=torch.int64)])
def test_index_tuples_that_are_no_sequence(value):
    refused(TypeError, f"`indices_tuple` to be a sequence of tensors, but got {type(value).__name__}",
            indices_tuple=value)  # fmt: skip


@pytest.mark.parametrize(
    ("indices", "came"),
    [
        (torch.zeros(2, 2, dtype=torch.int64), "(2, 2) torch.int64"),
        (torch.zeros(2), "(2,) torch.float32"),
        (torch.zeros(2, dtype=torch.bool), "(2,) torch.bool"),
        ([0, 1], "list"),
    ],
)
def test_index_tuples_of_something_else(indices, came):
    with pytest.raises(TypeError, match=r"hold one-dimensional int64 tensors, but got .*" + re.escape(came)):
        supcon_loss(ROWS, LABELS, indices_tuple=(INDEX, INDEX, indices))


def test_index_tuples_of_unequal_parts():
    shorter = INDEX[:1]
    message = "as many anchors as partners in `indices_tuple`, but got 2 and 1 for positives, 2 and 2 for negatives"
    refused(ValueError, message, indices_tuple=(INDEX, shorter, INDEX, INDEX))
    refused(ValueError, "2 and 2 for positives, 2 and 1 for negatives", indices_tuple=(INDEX, INDEX, shorter))


def test_index_tuples_where_the_first_view_alone_is_asked_for():
    refused(ValueError, "Expected `contrast_mode` to be 'all' with `indices_tuple`", VIEWS, LABELS[:3],
            indices_tuple=PAIRS, contrast_mode="one")  # fmt: skip


@pytest.mark.parametrize("wrong", [-1, len(ROWS)])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_pairs_of_rows_that_are_not_there(place, wrong):
    pairs = [torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([0, 0]), torch.tensor([2, 2])]
    pairs[place] = torch.tensor([0, wrong])
    whose = ("anchors", "positives", "anchors", "negatives")[place]
    with pytest.raises(IndexError, match=rf"the {whose} in `indices_tuple` to be row numbers in \[0, {len(ROWS)}\)"):
        supcon_loss(ROWS, indices_tuple=pairs)


def test_a_backend_that_cannot_names_those_that_can():
    message = "backend='tiled' cannot do this: a similarity.*; backends that can: reference$"
    with pytest.raises(ValueError, match=message):
        supcon_loss(ROWS, LABELS, similarity=torch.cdist, backend="tiled")


def test_similarities_that_are_none():
    refused(TypeError, "`similarity` to be None or a function of two tensors, but got str", similarity="cosine")
    message = "Expected `similarity` to return a tensor (anchors, rows) = (6, 6), but got "
    refused(ValueError, f"{message}(6,)", similarity=lambda a, b: (a @ b.T).sum(dim=1))
    refused(ValueError, f"{message}float", similarity=lambda a, b: 1.0)
    refused(ValueError, "= (3, 6), but got (6, 6)", num_views=2, contrast_mode="one", similarity=lambda a, b: b @ b.T)


@pytest.mark.parametrize("temperature", [Fraction(1, 5), np.float64(0.2), np.float32(0.2)])
@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_temperatures_of_any_real_type(backend, temperature):
    for scale in (False, True):
        options = {"scale_by_temperature": scale, "backend": backend}
        ours = supcon_loss(ROWS, LABELS, temperature=temperature, **options)
        torch.testing.assert_close(ours.losses, supcon_loss(ROWS, LABELS, temperature=0.2, **options).losses)


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_embeddings_without_values(backend):
    """On the meta device shapes and dtypes come out, to plan a run by."""
    rows, labels = ROWS.to("meta").requires_grad_(), LABELS.to("meta")
    terms = supcon_loss(rows, labels, backend=backend)
    assert (terms.losses.shape, terms.valid.shape, terms.losses.device.type) == ((6,), (6,), "meta")
    terms.mean().backward()
    assert rows.grad.shape == ROWS.shape


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        supcon_loss(ROWS, LABELS, ROWS)
