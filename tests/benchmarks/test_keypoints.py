"""The comparison of key points runs through, and its intervals are Student's."""

import keypoints
import pytest


@pytest.mark.slow
def test_it_runs_through():
    rows = keypoints.main(["--quick"])
    assert [row[0] for row in rows] == list(keypoints.METHODS)
    assert all(0 < float(row[1]) < 10 for row in rows)
    assert all(len(row) == len(keypoints.HEADER) for row in rows)


def test_intervals():
    assert keypoints.with_interval([2.0]) == "2.000"
    assert keypoints.with_interval([1.0, 2.0, 3.0]) == "2.000 (-0.484 to 4.484)"
