"""The benchmark of retrieval: both measure the same, a quick run, the table."""

import numpy as np
import pytest
import retrieval
import tables
from retrieval import OURS, PML, PML_BINS, Points


def test_points_are_unit_rows_of_equal_classes():
    (query, wanted, reference, labels), options = Points(1000, 20, queries=100).arguments()
    assert query.shape == (100, 128)
    assert not np.isin(query, reference).all(axis=1).any()
    assert np.linalg.norm(reference, axis=1) == pytest.approx(np.ones(1000), abs=1e-5)
    assert np.bincount(labels).tolist() == [50] * 20
    assert np.bincount(wanted).tolist() == [5] * 20
    assert not options["ref_includes_query"]
    own, options = Points(50, 5).arguments()
    assert own[0] is own[2]
    assert options["ref_includes_query"]
    assert (Points(50, 5).pairs, Points(50, 5, queries=4).pairs) == (2500, 200)


def test_both_measure_the_same_metrics():
    points = Points(700, 10)
    pml, ours = (retrieval.process(provider, points) for provider in (PML, OURS))
    assert retrieval.largest_difference(ours["metrics"], pml["metrics"]) < 1e-6
    assert 0.1 < pml["metrics"]["mean_average_precision_at_r"] < pml["metrics"]["precision_at_1"] < 0.95
    assert min(ours["seconds"], pml["seconds"]) > 0
    wrong = ours["metrics"] | {"ami": ours["metrics"]["ami"] + 0.25}
    assert retrieval.largest_difference(wrong, pml["metrics"]) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.slow
def test_a_measurement_in_a_fresh_process():
    row = retrieval.measure(OURS, Points(400, 4))
    assert row["seconds"] > 0
    assert row["extra_mb"] is None or row["extra_mb"] >= 0
    with pytest.raises(RuntimeError, match="KeyError: 'nobody'"):
        retrieval.measure("nobody", Points(50, 5))


def test_quick_run(capsys, monkeypatch):
    def in_this_process(provider, points):
        return {"provider": provider, "points": points, **retrieval.process(provider, points)}

    monkeypatch.setattr(tables, "keep_table", lambda *_: pytest.fail("a quick run is no record"))
    monkeypatch.setattr(retrieval, "measure", in_this_process)
    rows = retrieval.main(["--quick"])
    assert [row["provider"] for row in rows] == [PML, PML_BINS, OURS, OURS, OURS]
    assert capsys.readouterr().out.splitlines()[5].startswith("| 128 wide | queries x references | seconds |")


def test_cells():
    metrics = dict.fromkeys(retrieval.COMMON.values(), 0.5)
    rows = [
        {"provider": PML, "points": Points(1000, 5), "seconds": 0.2, "extra_mb": 3000.4, "metrics": metrics},
        {"provider": OURS, "points": Points(1000, 5), "seconds": 0.01, "extra_mb": None,
         "metrics": metrics | {"nmi": 0.5002}},
        {"provider": OURS, "points": Points(2000, 5, queries=10), "seconds": 0.001, "extra_mb": 5.0, "metrics": {}},
    ]  # fmt: skip
    assert [row[1:] for row in retrieval.cells(rows)] == [
        ["1,000 x 1,000", "0.20", "200.00", "-", "3,000", "-"],
        ["1,000 x 1,000", "0.01", "10.00", "20.0", "-", "2e-04"],
        ["10 x 2,000", "0.00", "50.00", "4.0", "5", "-"],
    ]
    assert all(len(row) == len(retrieval.HEADER) for row in retrieval.cells(rows))
