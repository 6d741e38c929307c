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

from tables import mean_with_interval, publish

RECIPE = Path(__file__).parents[1] / "recipes" / "keypoints.py"
LABELLED, EPOCHS, SEEDS, DIGITS = 32, 20, 3, 3
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
        cells = ["{} ({})".format(*mean_with_interval(values, DIGITS)) for values in (errors[name], less)]
        rows.append([name, cells[0], cells[1] if weight else "-"])
        print(rows[-1], flush=True)
    publish("keypoints", HEADER, rows, quick=quick)
    return rows


if __name__ == "__main__":
    main()
