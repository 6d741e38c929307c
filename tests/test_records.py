"""What README and the benchmarks' page say is what the records say, and the records keep the promise made of them."""

import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECORDS = [json.loads(path.read_text()) for path in sorted((ROOT / "docs" / "records").glob("digits-*.json"))]


def test_pages_show_the_records():
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    make_tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_tables)
    pages = [
        page for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")) if "<!-- records:" in page.read_text()
    ]
    assert len(pages) == 4
    for page in pages:
        assert make_tables.filled(page.read_text()) == page.read_text(), f"run `make tables` for {page}"


def test_the_page_of_benchmarks_shows_the_records(tmp_path):
    """Its text: figures depend on the version of matplotlib."""
    make_page = ROOT / "benchmarks" / "make_page.py"
    command = [sys.executable, str(make_page), "--docs", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert (tmp_path / "benchmarks.md").read_text() == page, "run `python benchmarks/make_page.py`"


@pytest.mark.parametrize("score", ["linear_probe/top1", "retrieval/precision_at_1"])
def test_digits_on_two_processes_are_within_noise_of_one(score):
    one = [record[score] for record in RECORDS]
    spread = [json.loads(path.read_text()) for path in (ROOT / "docs" / "records").glob("spread-*.json")]
    assert sorted((record["processes"], record["chunk_size"]) for record in spread) == [(2, 0), (2, 64)]
    for record in spread:
        assert abs(record[score] - statistics.mean(one)) <= 0.01


@pytest.mark.parametrize("score", ["linear_probe/top1", "retrieval/precision_at_1"])
def test_digits_records_reach_the_promised_mean(score):
    assert sorted(record["seed"] for record in RECORDS) == [0, 1, 2]
    assert statistics.mean(record[score] for record in RECORDS) >= 0.985
    assert all(record["seconds/total"] <= 120 for record in RECORDS)
