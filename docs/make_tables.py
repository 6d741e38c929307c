"""Write the tables of README from the records in `docs/records`: `python docs/make_tables.py`."""

import json
import re
import statistics
from pathlib import Path

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
    records = [json.loads(path.read_text()) for path in sorted((ROOT / "docs/records").glob("digits-*.json"))]
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


def filled(text: str) -> str:
    """README with its table written anew."""
    marked = re.compile(r"(<!-- records:digits -->\n).*?(<!-- /records -->)", re.S)
    return marked.sub(lambda found: f"{found[1]}{digits_table()}\n{found[2]}", text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
