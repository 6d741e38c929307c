"""The code blocks of the guides; they train the most, and run beside those of the other pages."""

import pytest
from helpers.page_tests import GUIDES, check_page

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("page", GUIDES)
def test_page(bench, page, tmp_path):
    check_page(bench, page, tmp_path)
