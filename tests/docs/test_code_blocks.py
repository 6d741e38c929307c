"""Every code block of the site does what it says: Python and commands run, data parses, the rest says what it is."""

import re

import pytest
from helpers.page_tests import GUIDES, OTHERS, PAGES, check_page
from helpers.workbench import CHECKOUT, WITH_RUNS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("page", OTHERS)
def test_page(bench, page, tmp_path):
    check_page(bench, page, tmp_path)


def test_pages_are_found():
    assert len(PAGES) > 20
    assert len(GUIDES) >= 5
    assert set(WITH_RUNS) <= set(PAGES)
    fences = re.findall(r"^ *```(\w+)", "".join((CHECKOUT / page).read_text() for page in PAGES), re.M)
    assert {"python", "bash"} <= set(fences)
