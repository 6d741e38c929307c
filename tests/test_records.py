"""What README and the benchmarks' page say is what the records say, and the records keep the promise made of them."""

import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOUND = sorted((ROOT / "docs" / "records").glob("digits-seed*.json"))
RECORDS = [json.loads(path.read_text()) for path in FOUND]


def test_pages_show_the_records():
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    make_tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_tables)
    pages = [
        page for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")) if "<!-- records:" in page.read_text()
    ]
    assert len(pages) == 7
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


def table_of(name):
    """The rows of a recorded table, by the header's names, numbers read."""
    record = json.loads((ROOT / "docs" / "records" / f"benchmark-{name}.json").read_text())
    return [dict(zip(record["header"], map(number_in, row), strict=True)) for row in record["rows"]]


def number_in(cell):
    try:
        return float(cell.replace(",", ""))
    except ValueError:
        return cell


def test_processes_share_the_work_and_have_the_right_gradient():
    rows = {(row["a process's"], row["processes"]): row for row in table_of("processes")}
    ours = {W: rows["`GlobalBatchLoss(SupConLossOut)`", W] for W in (1, 2, 4)}
    for W, row in ours.items():
        assert row["products, N^2 D"] <= 1.05 * ours[1]["products, N^2 D"] / W
        assert row["gradient error"] <= 1e-5
        assert row["loss"] == 1.00
    assert ours[1]["memory, MB"] > ours[2]["memory, MB"] > ours[4]["memory, MB"]
    for W in (1, 2, 4):  # what the page says of the other
        assert rows["PML's `DistributedLossWrapper`", W]["loss"] == W


def test_chunks_have_the_gradient_of_the_batch_in_its_time_and_reduce_once():
    rows = {row[""]: row for row in table_of("cached")}
    for where in ("one process", "two processes"):
        assert rows[f"{where}: error of the gradient, float32"]["chunks of 64"] <= 1e-6
        assert rows[f"{where}: seconds of a step"]["chunks over whole"] <= 1.5
        memory = rows[f"{where}: extra memory, MB"]
        assert memory["chunks of 64"] < memory["whole batch"]
    assert rows["one process: error of the gradient, float64"]["chunks of 64"] <= 1e-6
    assert rows["two processes: reductions of the gradient in a step"]["chunks of 64"] == 1


def test_the_loader_is_twice_as_fast_and_the_loss_a_small_share():
    rows = {row[0]: row for row in json.loads((ROOT / "docs/records/benchmark-loader.json").read_text())["rows"]}
    for workers in ("no workers", "2 workers"):
        assert float(rows[f"views a second, {workers}"][3]) >= 2
    assert float(rows["the loss in a step of training, %"][1]) < 3


def test_retrieval_is_ten_times_as_fast_as_pml_a_pair_and_stays_small():
    rows = {(row["128 wide"], row["queries x references"]): row for row in table_of("retrieval")}
    ours = {points: row for (name, points), row in rows.items() if name.startswith("`retrieval_metrics`")}
    assert ours["50,000 x 50,000"]["PML's ns over it"] >= 10
    assert ours["50,000 x 50,000"]["extra memory, MB"] <= 1000
    assert ours["10,000 x 10,000"]["largest difference from PML's"] <= 1e-6
    assert ours["10,000 x 1,000,000"]["extra memory, MB"] <= 1000


def test_approximate_indexes_are_recorded_with_what_they_find():
    rows = {row["index"]: row for row in table_of("indexes")}
    assert rows["`exact`"]["recall@100"] == 1
    assert {"`ivf`", "`hnsw`"} <= set(rows)
    assert all(0 < row["recall@1"] <= 1 for row in rows.values())
