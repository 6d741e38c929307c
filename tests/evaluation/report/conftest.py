"""The reports of the tests, written on first use and shared by all modules."""

from functools import cache

import pytest
from helpers.report_cases import CASES

from pml_supcon.evaluation.report import write_report


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """A function that returns the path of a report by the name of its case."""
    folder = tmp_path_factory.mktemp("reports")

    @cache
    def written(name):
        write_report(folder / f"{name}.html", CASES[name]())
        return folder / f"{name}.html"

    return written
