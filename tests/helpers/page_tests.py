"""What the tests of code blocks share: the pages, in two parts that run at a time, and the test of one."""

import pytest

from helpers.workbench import CHECKOUT

PAGES = ["README.md", "CHANGELOG.md"]
PAGES += sorted(str(page.relative_to(CHECKOUT)) for page in (CHECKOUT / "docs").rglob("*.md"))
GUIDES = [page for page in PAGES if page.startswith("docs/guides/")]
OTHERS = [page for page in PAGES if page not in GUIDES]

TOLD = 3000  # characters of what a page has said, from the end


def check_page(bench, page, folder):
    """Fail with the end of what was said where a block of a page does not hold."""
    status, said = bench.run_page(CHECKOUT / page, page, folder)
    if status:
        pytest.fail(said[-TOLD:])
