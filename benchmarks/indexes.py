"""Measure the recall and the speed of approximate nearest-neighbour indexes.

    python benchmarks/indexes.py [--quick]

100,000 references and 1,000 queries, 128 wide, around 1,000 centres; the 100 nearest of every query. Recall@k is the
share of the k nearest that are among the first k of the index (`index_recall`). The exact search is timed too.
Takes about three minutes.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from retrieval import Points
from tables import publish, shown

from pml_supcon.search.indexes import make_searcher, share_found

AT = (1, 10, 100)
HEADER = ["index", "build, s", "search, s", *(f"recall@{k}" for k in AT)]
INDEXES = ("exact", "ivf", "hnsw", "IVF1024,PQ16", "IVF1024,PQ32", "IVF4096,PQ16", "SQ8", "PQ16")


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure every index, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 references, only to try the script")
    quick = parser.parse_args(arguments).quick
    points = Points(2000, 50, queries=50) if quick else Points(100_000, 1000, queries=1000, scale=0.5)
    rows = measure(points, INDEXES[:3] if quick else INDEXES)
    made = [
        [f"`{row['index']}`", shown(row["build"]), shown(row["search"]), *(shown(r, 3) for r in row["recall"])]
        for row in rows
    ]
    publish("indexes", HEADER, made, quick=quick)
    return rows


def measure(points: Points, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return seconds and recall of each index; the first must be the exact one."""
    (queries, _, references, _), _ = points.arguments()
    rows, exact = [], None
    for name in names:
        marks = [time.perf_counter()]
        searcher = make_searcher(queries, references, index=name, own=False, k=max(AT), device=torch.device("cpu"))
        marks.append(time.perf_counter())
        _, found = searcher.find(np.arange(len(queries)), max(AT))
        marks.append(time.perf_counter())
        exact = found if exact is None else exact
        recall = [share_found(found[:, :k], exact[:, :k]) for k in AT]
        rows.append({"index": name, "build": marks[1] - marks[0], "search": marks[2] - marks[1], "recall": recall})
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
