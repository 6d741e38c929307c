"""Compare the auxiliary losses of pixels on touching digits: mean intersection over union with and without each.

    python benchmarks/segmentation.py [--quick]

Trains `recipes/segmentation.py` with cross entropy alone and with each auxiliary loss, with its defaults, for three
seeds. A row has the mean and the standard deviation of the mean IoU on the test canvases, and the mean and the 95%
interval of its differences from cross entropy alone, paired by seed.
"""

import argparse
import runpy
from collections.abc import Sequence
from pathlib import Path

from label_sets import spread
from tables import mean_with_interval, publish

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "segmentation.py"
SEEDS = 3
HEADER = ["loss", "mean IoU", "more than cross entropy alone", "95% interval"]
#: The recipe's `auxiliary`, by row; the first is what the others are compared with.
METHODS = {
    "cross entropy": "none",
    "... and 0.1 `PixelSupConLoss`, by class": "pixel",
    "... and 0.1 `MaskPrototypeLoss`": "prototype",
}


def main(arguments: Sequence[str] | None = None) -> list[list[str]]:
    """Train and score all methods, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch of 32 canvases, and no record")
    quick = parser.parse_args(arguments).quick
    recipe = runpy.run_path(str(RECIPE))
    smaller = {"train": 32, "test": 8, "epochs": 1} if quick else {}
    rows: list[list[str]] = []
    alone: list[float] = []
    for name, auxiliary in METHODS.items():
        found = [
            recipe["train_and_score"](recipe["Settings"](auxiliary=auxiliary, seed=seed, **smaller))
            for seed in range(1 if quick else SEEDS)
        ]
        alone = alone or found
        more = mean_with_interval([score - base for score, base in zip(found, alone, strict=True)], 4, sign="+")
        rows.append([name, spread(found), *(["-", "-"] if found is alone else more)])
        print(rows[-1], flush=True)
    publish("segmentation", HEADER, rows, quick=quick)
    return rows


if __name__ == "__main__":
    main()
