"""The benchmark of global batches: what a process's share of the work comes to."""

import processes
import pytest
from providers import Case


@pytest.mark.slow
def test_two_processes_share_the_products():
    alone, shared = (processes.measure("pml_supcon", number, Case(2048, D=16, classes=40), 1) for number in (1, 2))
    assert 2 <= alone["products"] < 2.5
    assert shared["products"] == pytest.approx(alone["products"] / 2, rel=0.1)
    for row in (alone, shared):
        assert row["loss"] == pytest.approx(1, rel=1e-5)
        assert row["gradient_error"] < 1e-5
        assert row["memory_mb"] > 0


@pytest.mark.slow
def test_the_efficient_mode_of_pml_is_shown_as_it_is():
    row = processes.measure("pml/efficient", 2, Case(256, D=16, classes=10), 1)
    assert row["loss"] == pytest.approx(2, rel=0.1)
    assert row["gradient_error"] > 0.1


def test_cells_are_those_of_the_header():
    row = dict.fromkeys(("products", "memory_mb", "seconds", "loss", "gradient_error"), 1.0)
    (cells,) = processes.cells([{"provider": "pml/exact", "processes": 4, **row}])
    assert len(cells) == len(processes.HEADER)
