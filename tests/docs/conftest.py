"""The bench on which pages are run, one for each file of tests."""

import pytest


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    from helpers.workbench import Workbench

    made = Workbench(tmp_path_factory.mktemp("bench"))
    yield made
    made.close()
