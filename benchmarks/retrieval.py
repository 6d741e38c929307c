"""Compare all metrics of retrieval and clustering with PML's `AccuracyCalculator`: time, memory and values.

    python benchmarks/retrieval.py [--quick]

Unit vectors, 128 wide, one process for each measurement: seconds of all metrics, extra memory (the peak above the
memory after imports and data) and, for equal points, the largest difference of the six metrics that both have. A pair
is a query and a reference.

- By default PML ranks all references of every query, which its reciprocal rank needs; `k="max_bin_count"` ranks as many
  as the largest class has, and takes 0 for a positive beyond them.
- Ours also has recall@k and k-NN accuracy, and the reciprocal rank over all references.
- The gallery has 1,000,000 references in 10,000 classes of 100, with separate queries and without clustering.

Takes about five minutes and 7 GB, the memory of PML's.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from memory import process_bytes, reset_peak
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from records import MB
from tables import publish, ratio, shown

from pml_supcon.metrics import retrieval_metrics
from pml_supcon.metrics.clustering import clustering_metrics

HEADER = ["128 wide", "queries x references", "seconds", "ns a pair", "PML's ns over it", "extra memory, MB"]
HEADER += ["largest difference from PML's"]
#: The metrics that both have: PML's name and ours.
COMMON = {
    "precision_at_1": "precision_at_1",
    "mean_reciprocal_rank": "mean_reciprocal_rank",
    "mean_average_precision_at_r": "mean_average_precision_at_r",
    "r_precision": "r_precision",
    "NMI": "nmi",
    "AMI": "ami",
}
WIDTH = 128
LIMIT_S = 1800
WARM_UP = 500  # fifty per class: FAISS warns of fewer


@dataclass(frozen=True)
class Points:
    """Queries and references around the centres of classes; with `queries` 0 the references are the queries too."""

    references: int
    classes: int
    queries: int = 0
    scale: float = 0.3  # of the centres, beside noise of 1

    @property
    def pairs(self) -> int:
        """The number of pairs of a query and a reference."""
        return (self.queries or self.references) * self.references

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, bool]]:
        """Return positional arguments and options of `retrieval_metrics` and `AccuracyCalculator.get_accuracy`."""
        centres = np.random.default_rng(0).standard_normal((self.classes, WIDTH), dtype=np.float32) * self.scale
        reference, labels = self.drawn(self.references, centres, seed=1)
        if not self.queries:
            return (reference, labels, reference, labels), {"ref_includes_query": True}
        return (*self.drawn(self.queries, centres, seed=2), reference, labels), {"ref_includes_query": False}

    def drawn(
        self, rows: int, centres: npt.NDArray[np.float32], *, seed: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return rows `(N, 128)` of classes of equal size in random order, and their labels."""
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(rows) % self.classes)
        points = rng.standard_normal((rows, WIDTH), dtype=np.float32)
        for start in range(0, rows, 10_000):  # in parts, without a second copy in memory
            part = slice(start, start + 10_000)
            points[part] += centres[labels[part]]
            points[part] /= np.linalg.norm(points[part], axis=1, keepdims=True)
        return points, labels


def with_pml(k: str | None) -> Callable[..., dict[str, float]]:
    """Return a function that computes PML's metrics, under our names."""

    def compute(*arguments: Any, **options: Any) -> dict[str, float]:
        calculator = AccuracyCalculator(include=tuple(COMMON), k=k, device=torch.device("cpu"))
        found = calculator.get_accuracy(*arguments, **options)
        return {ours: found[name] for name, ours in COMMON.items()}

    return compute


def with_ours(query: Any, query_labels: Any, *others: Any, **options: Any) -> dict[str, float]:
    """Compute all of our metrics."""
    found = retrieval_metrics(query, query_labels, *others, **options)
    return found | (clustering_metrics(query, query_labels) if options["ref_includes_query"] else {})


PROVIDERS: dict[str, Callable[..., dict[str, float]]] = {
    "PML's `AccuracyCalculator`": with_pml(None),
    'PML\'s, `k="max_bin_count"`': with_pml("max_bin_count"),
    "`retrieval_metrics`, `clustering_metrics`": with_ours,
}
PML, PML_BINS, OURS = PROVIDERS


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure every row, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="some hundred points, only to try the script")
    quick = parser.parse_args(arguments).quick
    small, large = (Points(600, 10), Points(1200, 10)) if quick else (Points(10_000, 10), Points(50_000, 10))
    gallery = Points(2000, 20, queries=100) if quick else Points(1_000_000, 10_000, queries=10_000, scale=0.5)
    rows: list[dict[str, Any]] = []
    for provider, points in [(PML, small), (PML_BINS, small), (OURS, small), (OURS, large), (OURS, gallery)]:
        rows.append(measure(provider, points))
        print(rows[-1], flush=True)
    publish("retrieval", HEADER, cells(rows), quick=quick, text_columns=2)
    return rows


def measure(provider: str, points: Points) -> dict[str, Any]:
    """Measure a row of the table in a separate process."""
    command = [sys.executable, __file__, "--process", provider, json.dumps(asdict(points))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"{provider} on {points}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"provider": provider, "points": points, **result}


def process(provider: str, points: Points) -> dict[str, Any]:
    """Return the metrics, their seconds and memory, after a small call that loads all modules."""
    compute = PROVIDERS[provider]
    small = replace(points, references=WARM_UP, classes=min(points.classes, WARM_UP // 10))
    arguments, options = small.arguments()
    compute(*arguments, **options)
    arguments, options = points.arguments()
    before = reset_peak()
    started = time.perf_counter()
    metrics = compute(*arguments, **options)
    seconds = time.perf_counter() - started
    extra = None if before is None else (process_bytes("VmHWM") - before) / MB
    return {"seconds": seconds, "extra_mb": extra, "metrics": metrics}


def cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the rows of the table; the first must be PML's."""
    made = []
    for row in rows:
        points = row["points"]
        each, of_pml = (one["seconds"] / one["points"].pairs * 1e9 for one in (row, rows[0]))
        same = points == rows[0]["points"] and row is not rows[0]
        size = f"{points.queries or points.references:,} x {points.references:,}"
        faster = "-" if row is rows[0] else shown(ratio(of_pml, each), 1)
        difference = f"{largest_difference(row['metrics'], rows[0]['metrics']):.0e}" if same else "-"
        numbers = [shown(row["seconds"]), shown(each), faster, shown(row["extra_mb"], 0), difference]
        made.append([row["provider"], size, *numbers])
    return made


def largest_difference(found: dict[str, float], right: dict[str, float]) -> float:
    """Return the largest difference of the metrics that both have."""
    return max(abs(found[name] - right[name]) for name in COMMON.values())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--process"]:
        print(json.dumps(process(sys.argv[2], Points(**json.loads(sys.argv[3])))))
    else:
        main(sys.argv[1:])
