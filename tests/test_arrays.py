import math

import numpy as np
import pytest
import torch

from pml_supcon._arrays import as_embeddings, as_labels, check_same_width, row_blocks

NAN_ROWS = np.eye(3)
NAN_ROWS[1:, 0] = math.nan


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_and_numpy_give_the_same_matrix_half_precision_in_float32(dtype):
    rows = torch.randn(5, 3, dtype=torch.float64).to(dtype).requires_grad_()
    plain = rows.detach().to(torch.float64 if dtype == torch.float64 else torch.float32).numpy()
    found = as_embeddings(rows, "rows")
    assert found.dtype == plain.dtype
    assert np.array_equal(found, plain)
    assert np.array_equal(as_embeddings(plain.astype(np.float16), "rows"), plain.astype(np.float16))
    assert as_embeddings(rows, "rows", dtype=np.float64).dtype == np.float64


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_every_integer_type_are_int64(dtype):
    found = as_labels(torch.tensor([3, 1, 200]).to(dtype), "labels", 3)
    assert (found.dtype, found.tolist()) == (np.int64, torch.tensor([3, 1, 200]).to(dtype).tolist())


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.ones(3), ValueError, r"`x` to be a non-empty \(N, D\) matrix, but got shape \(3,\)"),
        (np.ones((0, 3)), ValueError, r"`x` to be a non-empty .* got shape \(0, 3\)"),
        (np.ones((3, 2, 2)), ValueError, r"got shape \(3, 2, 2\)"),
        (np.eye(3, dtype=int), TypeError, "`x` to be floating point, but got int64"),
        ([[1.0]], TypeError, "`x` to be a torch tensor or a numpy array, but got list"),
        (NAN_ROWS, ValueError, r"`x` to be finite, but got NaN or infinity in 2 of 3 rows \(the first is row 1\)"),
        (np.eye(3) * 1e300, ValueError, "infinity in 3 of 3 rows"),  # in float32
    ],
)
def test_wrong_embeddings(value, error, message):
    with pytest.raises(error, match=message):
        as_embeddings(value, "x", dtype=np.float32)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.array([0, 1]), ValueError, r"`y` to be one per embedding, shape \(3,\), but got shape \(2,\)"),
        (np.zeros((3, 1), int), ValueError, r"got shape \(3, 1\)"),
        (np.zeros(3), TypeError, "`y` to be integers, but got float64"),
        (torch.zeros(3, dtype=torch.bool), TypeError, "`y` to be integers, but got torch.bool"),
        ([0, 0, 1], TypeError, "`y` to be a torch tensor or a numpy array, but got list"),
        (np.array([0, 1, 2**63], np.uint64), ValueError, "int64, but got 9223372036854775808"),
    ],
)
def test_wrong_labels(value, error, message):
    with pytest.raises(error, match=message):
        as_labels(value, "y", 3)


def test_widths_and_blocks():
    with pytest.raises(ValueError, match=r"`a` and `b` to have the same width, but got shapes \(2, 3\) and \(2, 4\)"):
        check_same_width(np.eye(2, 3), "a", np.eye(2, 4), "b")
    assert [(part.start, part.stop) for part in row_blocks(10_000)] == [(0, 8192), (8192, 16384)]
