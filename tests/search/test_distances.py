import numpy as np
import pytest
from helpers.labelled_points import clustered, on_a_grid

from pml_supcon.search.distances import squared_lengths, well_conditioned


def squared_distances(queries, references):
    """Compute squared distances in float64, from the differences."""
    apart = queries[:, None].astype(np.float64) - references[None].astype(np.float64)
    return np.square(apart).sum(-1)


def in_float32(queries, references):
    """Compute squared distances by the formula that cancels the common digits of both."""
    squares = np.square(references).sum(1), np.square(queries).sum(1)
    return squares[0] + squares[1][:, None] - 2 * queries @ references.T


@pytest.mark.parametrize("offset", [0, 3, 1e4, -1e6])
@pytest.mark.parametrize("size", [1e-25, 1, 1e25])
def test_distances_agree_with_float64_far_from_the_origin_and_at_any_scale(offset, size):
    queries, references = ((clustered(n, seed=n)[0].astype(np.float64) + offset) * size for n in (30, 200))
    right = squared_distances(queries, references)
    found_queries, found_references, scale = well_conditioned(queries, references)
    assert found_queries.dtype == found_references.dtype == np.float32
    found = in_float32(found_queries, found_references).astype(np.float64) / scale**2
    assert found == pytest.approx(right, rel=1e-3, abs=1e-4 * size**2)


def test_most_rows_stay_the_same_arrays():
    for make in (clustered, on_a_grid):
        queries, references = (make(n, seed=n, classes=5)[0].astype(np.float32) for n in (30, 200))
        found = well_conditioned(queries, references)
        assert found[0] is queries
        assert found[1] is references
        assert found[2] == 1


@pytest.mark.parametrize("offset", [1000, 12345, -(2**20)])
def test_rows_on_a_grid_stay_on_a_grid(offset):
    references = on_a_grid(300, seed=1, classes=5)[0].astype(np.float32)
    moved = well_conditioned(references[:40] + np.float32(offset), references + np.float32(offset))
    assert np.array_equal(in_float32(*moved[:2]), squared_distances(references[:40], references))


def test_rows_of_very_different_lengths_are_an_error():
    references = clustered(100, seed=1)[0].astype(np.float32)
    references[7] *= np.float32(1e30)
    with pytest.raises(
        ValueError,
        match=r"`reference` to have squared distances that fit into float32, but got lengths of .*e\+30 beside 1.0e",
    ):
        well_conditioned(references, references)


def test_squared_lengths_from_an_origin_are_computed_in_blocks():
    rows = np.random.default_rng(0).normal(size=(20_001, 3)).astype(np.float32)
    origin = np.array([5.0, -1.0, 0.25])
    assert squared_lengths(rows, origin) == pytest.approx(((rows - origin) ** 2).sum(1), rel=1e-12)
