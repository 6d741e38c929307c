"""The bench on which pages are run, one for each file of tests."""

import pytest


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    from workbench import Workbench  # which imports all recipes: for those alone that run pages

    made = Workbench(tmp_path_factory.mktemp("bench"))
    yield made
    made.close()
