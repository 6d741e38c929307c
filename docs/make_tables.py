"""Write the tables of README and of the pages from the records in `docs/records` and `docs/results`.

python docs/make_tables.py             # Markdown
python docs/make_tables.py --plots     # also the plots of the results
"""

import csv
import json
import re
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pml_supcon.experiments.plot import plot
from pml_supcon.experiments.record import with_text
from pml_supcon.experiments.registry import EXPERIMENTS
from pml_supcon.experiments.scales import SCALES
from pml_supcon.experiments.tables import tables_of

ROOT = Path(__file__).resolve().parent.parent
RULER = "| --- | ---: | ---: | ---: |"
ROWS = {
    "linear probe, top-1": "linear_probe/top1",
    "precision@1": "retrieval/precision_at_1",
    "R-precision": "retrieval/r_precision",
    "MAP@R": "retrieval/mean_average_precision_at_r",
    "k-NN accuracy": "retrieval/knn_accuracy",
    "seconds": "seconds/total",
}


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """Return a Markdown table; all columns after the first `text_columns` are numbers, aligned right."""
    ruler = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *rows))


def read_records(pattern: str) -> list[dict[str, Any]]:
    """Read the records of runs whose files match a pattern."""
    return [json.loads(path.read_text()) for path in sorted((ROOT / "docs/records").glob(pattern))]


def digits_table() -> str:
    """Return the runs on the digits with the recipe's defaults, a column for each seed and one for the mean."""
    records, rows = read_records("digits-seed*.json"), []
    for title, key in ROWS.items():
        digits = 0 if key.startswith("seconds") else 4
        values = [record[key] for record in records]
        rows.append([title, *(f"{value:.{digits}f}" for value in [*values, statistics.mean(values)])])
    table = markdown(["held-out 30% of the digits", *(f"seed {record['seed']}" for record in records), "mean"], rows)
    first = records[0]
    versions = f"torch {first['version/torch']}, timm {first['version/timm']}, Python {first['version/python']}"
    machine = f"{first['cpus']} CPU cores ({first['device']})"
    command = '`make train ARGS="--seed N"`'
    return f"{table}\n\n{command} on {first['date']}, {machine}, {versions}, commit {first['commit']}."


def spread_table() -> str:
    """Compare runs on one process and on two, with and without chunks."""
    records = sorted(read_records("spread-*.json"), key=lambda record: record["chunk_size"])
    rows = []
    for record in (*read_records("digits-seed0.json"), *records):
        title = f"{record['processes']} process{'es' if record['processes'] > 1 else ''}"
        title += f", chunks of {record['chunk_size']}" if record.get("chunk_size") else ""
        scores = (record["linear_probe/top1"], record["retrieval/precision_at_1"], record["train/final_loss"])
        rows.append([title, *(f"{score:.4f}" for score in scores)])
    header = ["the digits, seed 0, 256 images in a batch", "linear probe, top-1", "precision@1", "final loss"]
    command = "`ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 recipes/train.py [--chunk-size 64]`"
    return f"{markdown(header, rows)}\n\n{command} on {records[0]['date']}, commit {records[0]['commit']}."


def measured_table(name: str) -> str:
    """Return the table of a script in `benchmarks/` with its source, or a line that says that it was not run.

    A second table of the script `name.py` is the record `name_more`.
    """
    path = ROOT / "docs/records" / f"benchmark-{name}.json"
    script = name if (ROOT / "benchmarks" / f"{name}.py").exists() else name.rpartition("_")[0]
    if not path.exists() and (ROOT / "benchmarks" / f"{script}.py").exists():
        return f"Not measured yet; `benchmarks/{script}.py` writes this table."
    record = json.loads(path.read_text())
    where = record["environment"]
    machine = f"{where['hardware']}, {where['cpus']} CPU cores"
    versions = f"torch {where['torch']}, pytorch-metric-learning {where['pml']}, Python {where['python']}"
    source = (
        f"`python benchmarks/{script}.py`, {where['date'][:10]} at commit {where['commit']}; {machine}; {versions}."
    )
    return f"{markdown(record['header'], record['rows'])}\n\n{source}"


def results() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the file of each result and its record with the experiment's text, by scale and experiment."""
    for scale in SCALES.values():
        for name in EXPERIMENTS:
            path = ROOT / "docs/results" / scale.name / f"{name}.json"
            if path.exists():
                yield path, with_text(json.loads(path.read_text()), EXPERIMENTS[name](scale))


def results_table() -> str:
    """Count the orderings by verdict for each experiment and scale; the last column has those not in the paper."""
    header = ["experiment", "scale", "orderings of the paper", "held", "not told apart", "reversed", "others"]
    rows = []
    for _, record in results():
        paper, others = (
            [each["verdict"] for each in record["comparisons"] if each["claimed"] == claimed]
            for claimed in (True, False)
        )
        anchor = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", record["title"].lower()))  # as Markdown's
        title = f"[{record['title']}]({record['scale'].replace('-', '_')}.md#{anchor})"
        held, reversed_ = paper.count("held"), paper.count("reversed")
        counts = map(str, (len(paper), held, len(paper) - held - reversed_, reversed_))
        summary = f"{len(others)}: {others.count('held')} held, {others.count('reversed')} reversed"
        rows.append([title, record["scale"], *counts, summary if others else "\u2013"])
    return markdown(header, rows, text_columns=2)


def losses_table() -> str:
    """Compare PML's loss with ours on the CPU, by the last run of `benchmarks/every_size.py`."""
    wanted = {"question": "every_size", "D": "128", "option": "L_out", "device": "cpu", "mode": "both"}
    with (ROOT / "benchmarks/results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if wanted.items() <= row.items()]
    if not rows:
        return "Not measured yet: `python benchmarks/every_size.py`."
    run = {(row["provider"], row["backend"], row["N"]): row for row in rows if row["date"] == rows[-1]["date"]}
    last = rows[-1]
    lines = [
        f"| rows N, D = 128, {last['threads']} of {last['cpus']} CPU cores | PML's `SupConLoss` | `SupConLossOut` | |",
        RULER,
    ]
    for N in ("32", "128", "1024", "8192"):
        pml, ours = (1e3 * float(run[(*name, N)]["p50"]) for name in (("pml", ""), ("pml_supcon", "auto")))
        times = (f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.2f} ms" for ms in (pml, ours))
        lines.append("| " + " | ".join([f"{int(N):,}: a step", *times, f"{pml / ours:.1f} times faster"]) + " |")
    memory = (float(run[(*name, "8192")]["peak_extra_mb"]) for name in (("pml", ""), ("pml_supcon", "auto")))
    theirs, own = memory
    lines.append(f"| 8,192: extra memory | {theirs:,.0f} MB | {own:,.0f} MB | {theirs / own:.0f} times less |")
    source = f"on {last['date'][:10]}; {last['hardware']}, torch {last['torch']}, commit {last['commit']}."
    return "\n".join([*lines, "", f"`python benchmarks/every_size.py` {source}"])


#: Tables of the recipe's records, by the name in a page.
TABLES = {"results": results_table, "losses": losses_table, "digits": digits_table, "spread": spread_table}


def filled(text: str) -> str:
    """Return a page with its tables written anew."""
    marked = re.compile(r"(<!-- records:(\w+) -->\n).*?(<!-- /records -->)", re.S)

    def table(found: re.Match[str]) -> str:
        made = TABLES[found[2]]() if found[2] in TABLES else measured_table(found[2])
        return f"{found[1]}{made}\n{found[3]}"

    return marked.sub(table, text)


def generated() -> dict[Path, str]:
    """Return the current text of all generated pages and result tables."""
    pages = {page: filled(page.read_text()) for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]}
    return pages | {path.with_suffix(".md"): tables_of(record) for path, record in results()}


if __name__ == "__main__":
    for page, text in generated().items():
        if page.read_text() != text:
            page.write_text(text)
    for path, record in results() if "--plots" in sys.argv else ():  # SVG differs between versions of matplotlib
        plot(record, path.with_suffix(".svg"))
