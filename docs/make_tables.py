"""Write the tables of README and the pages from the records in `docs/records`: `python docs/make_tables.py`."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

from pml_supcon.recipes.compare import COMPARISONS

ROOT = Path(__file__).resolve().parent.parent
ROWS = {
    "linear probe, top-1": "linear_probe/top1",
    "precision@1": "retrieval/precision_at_1",
    "R-precision": "retrieval/r_precision",
    "MAP@R": "retrieval/mean_average_precision_at_r",
    "k-NN accuracy": "retrieval/knn_accuracy",
    "seconds": "seconds/total",
}


def digits_table() -> str:
    """The runs on the digits, a column for each seed and their mean."""
    found = sorted((ROOT / "docs/records").glob("methods-supcon_out-seed*.json"))  # the recipe's defaults
    records = [json.loads(path.read_text()) for path in found]
    seeds = [f"seed {record['seed']}" for record in records]
    lines = [f"| held-out 30% of the digits | {' | '.join([*seeds, 'mean'])} |"]
    lines.append("| --- |" + " ---: |" * (len(seeds) + 1))
    for title, key in ROWS.items():
        digits = 0 if key.startswith("seconds") else 4
        values = [record[key] for record in records]
        cells = [f"{value:.{digits}f}" for value in [*values, statistics.mean(values)]]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    first = records[0]
    versions = f"torch {first['version/torch']}, timm {first['version/timm']}, Python {first['version/python']}"
    lines += ["", f"`make train ARGS=\"--seed N\"` on {first['date']}, {first['cpus']} CPU cores ({first['device']}), "
              f"{versions}, commit {first['commit']}."]  # fmt: skip
    return "\n".join(lines)


def spread_table() -> str:
    """The digits on one process and on two, in chunks too."""
    records = [json.loads(path.read_text()) for path in sorted((ROOT / "docs/records").glob("spread-*.json"))]
    records.sort(key=lambda record: record["chunk_size"])
    one = json.loads((ROOT / "docs/records/methods-supcon_out-seed0.json").read_text())
    lines = ["| the digits, seed 0, 256 images in a batch | linear probe, top-1 | precision@1 | final loss |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for record in (one, *records):
        title = f"{record['processes']} process{'es' if record['processes'] > 1 else ''}"
        title += f", chunks of {record['chunk_size']}" if record.get("chunk_size") else ""
        scores = (record["linear_probe/top1"], record["retrieval/precision_at_1"], record["train/final_loss"])
        lines.append(f"| {title} | " + " | ".join(f"{score:.4f}" for score in scores) + " |")
    command = "ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 recipes/train.py [--chunk-size 64]"
    return "\n".join([*lines, "", f"`{command}` on {records[0]['date']}, commit {records[0]['commit']}."])


def compared(name: str) -> dict[str, list[dict[str, Any]]]:
    """The records of a comparison by row, in the order in which `recipes/compare.py` has them."""
    found = sorted((ROOT / "docs/records").glob(f"{name}-*-seed*.json"))
    records = [json.loads(path.read_text()) for path in found]
    return {row: [record for record in records if record["row"] == row] for row in COMPARISONS[name]}


def mean_and_deviation(values: list[float], digits: int) -> str:
    """Mean and standard deviation of values, as far as there are any."""
    if len(values) < 2:
        return "".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def compared_table(name: str, columns: dict[str, tuple[str, int]]) -> str:
    """A row for each method or miner: mean and deviation over seeds; `columns`: the record's key, and digits."""
    rows = compared(name)
    seeds = sorted({record["seed"] for records in rows.values() for record in records})
    title = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    lines = [f"| the digits, {title} | {' | '.join(columns)} |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for row, records in rows.items():
        values = [[record[key] for record in records if key in record] for key, _ in columns.values()]
        digits = [number for _, number in columns.values()]
        cells = [
            mean_and_deviation(found, number) if found else "" for found, number in zip(values, digits, strict=True)
        ]
        lines.append(f"| `{row.replace('-', ' --miner ')}` | {' | '.join(cells)} |")
    every = [record for records in rows.values() for record in records]
    commits = ", ".join(dict.fromkeys(record["commit"] for record in every))
    where = f"{every[0]['cpus']} CPU cores, torch {every[0]['version/torch']}, commit {commits}"
    return "\n".join([*lines, "", f"`python recipes/compare.py {name}` on {every[0]['date']}, {where}."])


def methods_table() -> str:
    """All methods under one recipe."""
    columns = {title: (key, 0 if title == "seconds" else 4) for title, key in ROWS.items() if title != "R-precision"}
    return compared_table("methods", columns)


def miners_table() -> str:
    """Triplets with every miner beside the loss that mines by itself: cost, choice, scores."""
    columns = {
        "linear probe, top-1": ("linear_probe/top1", 4),
        "precision@1": ("retrieval/precision_at_1", 4),
        "seconds": ("seconds/total", 0),
        "mining, seconds a step": ("miner/seconds", 4),
        "triplets": ("miner/triplets", 0),
        "positive pairs": ("miner/positive_pairs", 0),
        "cosine of chosen positives": ("miner/positive_similarity", 3),
        "of all": ("miner/positive_similarity_all", 3),
        "of chosen negatives": ("miner/negative_similarity", 3),
        "of all negatives": ("miner/negative_similarity_all", 3),
    }
    return compared_table("miners", columns)


def measured_table(name: str) -> str:
    """The table that a script in `benchmarks/` made, and where; a line that says so where it has not run."""
    path = ROOT / "docs/records" / f"benchmark-{name}.json"
    if not path.exists() and (ROOT / "benchmarks" / f"{name}.py").exists():
        return f"Not measured yet: `python benchmarks/{name}.py`."
    record = json.loads(path.read_text())
    header, where = record["header"], record["environment"]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *record["rows"]]
    versions = f"torch {where['torch']}, pytorch-metric-learning {where['pml']}, Python {where['python']}"
    source = (
        f"`python benchmarks/{name}.py`, {where['date'][:10]} at commit {where['commit']}; {where['hardware']}, "
        f"{where['cpus']} CPU cores; {versions}."
    )
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", source])


#: Tables that are made of the recipe's records, by the name in a page.
TABLES = {"digits": digits_table, "spread": spread_table, "methods": methods_table, "miners": miners_table}


def filled(text: str) -> str:
    """A page with its tables written anew."""
    marked = re.compile(r"(<!-- records:(\w+) -->\n).*?(<!-- /records -->)", re.S)

    def table(found: re.Match[str]) -> str:
        made = TABLES[found[2]]() if found[2] in TABLES else measured_table(found[2])
        return f"{found[1]}{made}\n{found[3]}"

    return marked.sub(table, text)


if __name__ == "__main__":
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text()
        if filled(text) != text:
            page.write_text(filled(text))
