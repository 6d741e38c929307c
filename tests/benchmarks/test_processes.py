"""The benchmark of global batches: the share of a process in the work."""

import processes
import pytest
from providers import Case


@pytest.mark.slow
def test_two_processes_share_the_products():
    alone, shared = (processes.measure("pml_supcon", number, Case(2048, D=16, classes=40), 1) for number in (1, 2))
    # one process takes 1.5 products (`dense`); two take half of 2 each (`tiled`), and the diagonals
    assert 1.5 <= alone["products"] < 2
    assert 1 <= shared["products"] < 1.25
    for row in (alone, shared):
        assert row["loss"] == pytest.approx(1, rel=1e-5)
        assert row["gradient_error"] < 1e-5
        assert row["memory_mb"] > 0
    assert {len(cells) for cells in processes.cells([alone, shared])} == {len(processes.HEADER)}


@pytest.mark.slow
def test_the_efficient_mode_of_pml_has_another_gradient():
    row = processes.measure("pml/efficient", 2, Case(256, D=16, classes=10), 1)
    assert row["loss"] == pytest.approx(2, rel=0.1)
    assert row["gradient_error"] > 0.1
