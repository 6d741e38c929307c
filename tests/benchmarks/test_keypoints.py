"""The comparison of key points runs through, and its intervals are Student's."""

import keypoints
import pytest
import tables


@pytest.mark.slow
def test_it_runs_through():
    rows = keypoints.main(["--quick"])
    assert [row[0] for row in rows] == list(keypoints.METHODS)
    assert all(0 < float(row[1].split()[0]) < 10 for row in rows)
    assert all(len(row) == len(keypoints.HEADER) for row in rows)


def test_intervals(monkeypatch):
    assert tables.mean_with_interval([2.0], 3) == ("2.000", "-")
    assert tables.mean_with_interval([1.0, 2.0, 3.0], 3) == ("2.000", "-0.484 to 4.484")
    assert tables.mean_with_interval([1.0, 2.0, 3.0], 1, sign="+") == ("+2.0", "-0.5 to +4.5")
    monkeypatch.setattr(keypoints, "publish", lambda *arguments, **options: None)
    train = lambda weight, labelled, epochs, seed: 3 + seed - weight * (1 + seed)  # noqa: E731
    monkeypatch.setattr(keypoints.runpy, "run_path", lambda path: {"train": train})
    first, second = keypoints.main([])
    assert first[1:] == ["4.000 (1.516 to 6.484)", "-"]
    assert second[1:] == ["2.000 (2.000 to 2.000)", "2.000 (-0.484 to 4.484)"]
