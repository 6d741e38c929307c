"""The comparison of auxiliary losses runs through on few canvases."""

import pytest
import segmentation


@pytest.mark.slow
def test_it_runs_through():
    rows = segmentation.main(["--quick"])
    assert [row[0] for row in rows] == list(segmentation.METHODS)
    assert all(len(row) == len(segmentation.HEADER) for row in rows)
    assert rows[0][2:] == ["-", "-"]
