"""Train key points from few labels with and without the view consistency loss, on drawn arms.

    python benchmarks/keypoints.py [--quick]

Runs `recipes/keypoints.py` with its defaults on three seeds, each with images, labels and initial weights of its own.
The table has the mean distance of a found joint from its place in test images, in pixels of 32, its 95% interval over
the seeds (Student's), and the paired difference from training without the loss.
"""

import argparse
import runpy
from collections.abc import Sequence
from pathlib import Path

from tables import publish

from pml_supcon.metrics.intervals import mean_interval

RECIPE = Path(__file__).parents[1] / "recipes" / "keypoints.py"
LABELLED, EPOCHS, SEEDS = 32, 20, 3
METHODS = {"labels alone": 0.0, "and `ViewConsistencyLoss`, weight 1": 1.0}
HEADER = ["training, 32 images with labels", "error, pixels", "less than without"]


def main(arguments: Sequence[str] | None = None) -> list[list[str]]:
    """Train and score both methods, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, and no record")
    quick = parser.parse_args(arguments).quick
    train = runpy.run_path(str(RECIPE))["train"]
    seeds, epochs = (1, 1) if quick else (SEEDS, EPOCHS)
    errors: dict[str, list[float]] = {}
    rows = []
    for name, weight in METHODS.items():
        errors[name] = [train(weight, LABELLED, epochs, seed) for seed in range(seeds)]
        base = errors[next(iter(METHODS))]
        less = [one - other for one, other in zip(base, errors[name], strict=True)]
        rows.append([name, with_interval(errors[name]), with_interval(less) if weight else "-"])
        print(rows[-1], flush=True)
    publish("keypoints", HEADER, rows, quick=quick)
    return rows


def with_interval(values: Sequence[float]) -> str:
    """Format a mean and its 95% interval, which one value does not have."""
    mean = f"{sum(values) / len(values):.3f}"
    if len(values) < 2:
        return mean
    low, high = mean_interval(values)
    return f"{mean} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
