"""The comparison of NNCLR with SimCLR runs through on small data."""

import nearest_neighbours
import pytest


@pytest.mark.slow
def test_the_comparison_runs_through():
    rows = nearest_neighbours.main(["--data", "digits", "--quick"])
    assert [row[:2] for row in rows] == [
        [data, method] for data in nearest_neighbours.EPOCHS for method in nearest_neighbours.METHODS
    ]
    assert all(len(row) == len(nearest_neighbours.HEADER) for row in rows)
    for simclr, nnclr in (rows[:2], rows[2:]):
        assert simclr[3:] == ["-"] * 3
        assert all(0 < float(share) <= 1 for share in nnclr[2:])
        assert min(float(simclr[2]), float(nnclr[2])) > 0.3
