"""The code blocks of all pages are fenced and in a known language; `test_code_blocks.py`, which is slow, runs them."""

from helpers.code_blocks import blocks_of
from helpers.workbench import CHECKOUT


def test_the_blocks_of_all_pages_are_read():
    pages = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
    assert sum(len(blocks_of(page.read_text(), str(page))) for page in pages) > 100
