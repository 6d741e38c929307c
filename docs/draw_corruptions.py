"""Draw the 15 corruptions at severity 3 on an image of CIFAR-10: `python docs/draw_corruptions.py`."""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from datasets import load_dataset

from pml_supcon.corruptions import CORRUPTIONS, Corruption

ROOT = Path(__file__).resolve().parent.parent
SEVERITY = 3


def draw(image: torch.Tensor, path: Path) -> None:
    """Draw the image `(3, H, W)`, uint8, clean and under each corruption."""
    panels = {"clean": image}
    panels |= {name: Corruption(name, SEVERITY)(image[None], [0])[0] for name in CORRUPTIONS}
    figure, axes = plt.subplots(2, 8, figsize=(12, 3.4))
    for axis, (name, panel) in zip(axes.flat, panels.items(), strict=True):
        axis.imshow(panel.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Read the test image and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=str(ROOT / "../shared/data/cifar10/test-*.parquet"), help="Parquet files")
    parser.add_argument("--index", type=int, default=9, help="index of the test image")
    arguments = parser.parse_args()
    rows = load_dataset("parquet", data_files=arguments.data, split="train")
    image = torch.from_numpy(np.array(rows[arguments.index]["image"].convert("RGB"))).permute(2, 0, 1)
    draw(image, ROOT / "docs/figures/corruptions.png")


if __name__ == "__main__":
    main()
