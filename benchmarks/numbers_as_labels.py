"""Compare losses whose labels are numbers on scikit-learn's diabetes data: a kernel, Rank-N-Contrast, squared errors.

    python benchmarks/numbers_as_labels.py [--quick]

442 patients with ten measurements; the label is the progress of the disease after a year, standardised. Each row of
the table is the mean and the standard deviation over ten random halves: ridge regression, with the penalty chosen by
cross validation on the training half, scores the frozen encoder on the other half by R2 and by Spearman's rank
correlation. Takes about two minutes on two cores.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import tabular
import torch
import torch.nn.functional as F
from label_sets import spread
from scipy.stats import spearmanr
from sklearn.datasets import load_diabetes
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from tables import publish
from torch import Tensor, nn

from pml_supcon.losses import RankNContrastLoss, SupConLossOut
from pml_supcon.targets import Kernel

EPOCHS, BATCH_SIZE, SPLITS, TEMPERATURE = 200, 221, 10, 0.1
PENALTIES = np.logspace(-2, 5, 15)
HEADER = ["training of the encoder", "R2", "Spearman"]


def main(arguments: Sequence[str] | None = None) -> list[list[str]]:
    """Train and score all methods, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one split, two epochs, and no record")
    quick = parser.parse_args(arguments).quick
    features, progress = load_diabetes(return_X_y=True)
    rows = []
    for name, method in METHODS.items():
        found = []
        for seed in range(1 if quick else SPLITS):
            parts = train_test_split(features, progress, test_size=0.5, random_state=seed)
            train, test, numbers, wanted = (torch.from_numpy(part).float() for part in parts)
            center, scale = train.mean(dim=0), train.std(dim=0)
            train, test = (train - center) / scale, (test - center) / scale
            numbers, wanted = (numbers - numbers.mean()) / numbers.std(), (wanted - numbers.mean()) / numbers.std()
            encode = method(train, numbers, 2 if quick else EPOCHS, seed)
            fitted = RidgeCV(PENALTIES).fit(encode(train).numpy(), numbers.numpy())
            guessed = fitted.predict(encode(test).numpy())
            found.append((r2_score(wanted, guessed), float(spearmanr(wanted, guessed).statistic)))
        rows.append([name, *(spread(values) for values in zip(*found, strict=True))])
        print(rows[-1], flush=True)
    publish("numbers_as_labels", HEADER, rows, quick=quick)
    return rows


Encode = Callable[[Tensor], Tensor]
Method = Callable[[Tensor, Tensor, int, int], Encode]


def raw(rows: Tensor, numbers: Tensor, epochs: int, seed: int) -> Encode:
    """Return the features themselves."""
    return lambda given: given


def trained(loss: tabular.Loss, top: Callable[[], nn.Module | None]) -> Method:
    """Return the method that trains an encoder with a loss and a top."""

    def method(rows: Tensor, numbers: Tensor, epochs: int, seed: int) -> Encode:
        return tabular.train(rows, numbers, loss, top(), epochs=epochs, batch_size=BATCH_SIZE, seed=seed)

    return method


def squared_error(outputs: Tensor, numbers: Tensor) -> Tensor:
    """Return the mean squared error of ``(B, 2, 1)`` outputs."""
    return F.mse_loss(outputs[..., 0], numbers[:, None].expand(-1, 2))


def kernel(sigma: float) -> nn.Module:
    """Return the loss with a Gaussian kernel of the numbers."""
    return SupConLossOut(TEMPERATURE, target=Kernel(sigma))


METHODS: dict[str, Method] = {
    "none: the features themselves": raw,
    "squared error": trained(squared_error, partial(nn.Linear, tabular.WIDTH, 1)),
    "`Kernel(sigma=0.25)`": trained(kernel(0.25), lambda: None),
    "`Kernel(sigma=0.5)`": trained(kernel(0.5), lambda: None),
    "`Kernel(sigma=1)`": trained(kernel(1.0), lambda: None),
    "`RankNContrastLoss`": trained(RankNContrastLoss(), lambda: None),
}


if __name__ == "__main__":
    main()
