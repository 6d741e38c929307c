"""Every code block of the site does what it says: Python and commands run, data parses, the rest says what it is."""

import re
from pathlib import Path

import pytest
from workbench import CHECKOUT, Workbench

DOCS = CHECKOUT / "docs"
PAGES = ["README.md", "CHANGELOG.md", *sorted(str(page.relative_to(CHECKOUT)) for page in DOCS.rglob("*.md"))]

TOLD = 3000  # characters of what a page has said, from the end


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = Workbench(tmp_path_factory.mktemp("bench"))
    yield made
    made.close()


@pytest.mark.parametrize("page", PAGES)
def test_page(bench, page, tmp_path):
    status, said = bench.run_page(CHECKOUT / page, page, tmp_path)
    if status:
        pytest.fail(said[-TOLD:])


def test_pages_are_found():
    assert len(PAGES) > 20
    fences = re.findall(r"^ *```(\w+)", "".join((CHECKOUT / page).read_text() for page in PAGES), re.M)
    assert {"python", "bash"} <= set(fences)
    assert not [page for page in PAGES if not Path(CHECKOUT / page).is_file()]
