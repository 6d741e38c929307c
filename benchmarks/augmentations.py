"""Time SimCLR's augmentation on a batch against kornia's (`pip install kornia`; it is no dependency of the package).

python benchmarks/augmentations.py [--rounds 15]
"""

import argparse
import statistics
import time
from typing import Any

import kornia.augmentation as K  # type: ignore[import-not-found]
import torch
from torch import nn

from pml_supcon.views import contrastive_augmentation

MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]


def kornia_augmentation(side: int) -> nn.Module:
    """Build the same augmentation of kornia: every image of the batch has parameters of its own."""
    return nn.Sequential(
        K.RandomResizedCrop((side, side), scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3)),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.Normalize(mean=torch.tensor(MEAN), std=torch.tensor(STD)),
    )


def main() -> None:
    """Print the median milliseconds of a batch of 256 images, sides and threads apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print("side threads ours_ms kornia_ms ratio")
    for side in (32, 96):
        images = torch.randint(0, 256, (256, 3, side, side), dtype=torch.uint8)
        ours, theirs = contrastive_augmentation(side, mean=MEAN, std=STD), kornia_augmentation(side)
        # kornia's augmentations reject uint8
        providers: list[Any] = [ours, lambda images, kornia=theirs: kornia(images.float() / 255)]
        for threads in (1, 2):
            torch.set_num_threads(threads)
            seconds: list[list[float]] = [[], []]
            for repetition in range(rounds + 2):
                for provider, times in zip(providers, seconds, strict=True):  # in turn: load hits both alike
                    start = time.perf_counter()
                    provider(images)
                    times += [time.perf_counter() - start] if repetition >= 2 else []
            our_ms, their_ms = (1000 * statistics.median(times) for times in seconds)
            print(f"{side} {threads} {our_ms:.1f} {their_ms:.1f} {their_ms / our_ms:.1f}")


if __name__ == "__main__":
    main()
