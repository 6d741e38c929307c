"""Compare label sets as targets with their powerset as classes and with binary cross entropy, on the yeast data.

    python benchmarks/label_sets.py --data yeast.npz [--quick]

The file has `train_x` (1500, 103), `train_y` (1500, 14) and the same of 917 test rows (Elisseeff and Weston 2001). Each
row of the table is the mean and the standard deviation over five seeds. A linear probe, one logistic regression for
each label with the penalty chosen on a fifth of the training rows, scores the frozen encoder: mean average precision
over the labels, and F1 over all decisions. Takes about ten minutes on one core.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import tabular
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from sklearn.model_selection import train_test_split
from sklearn.multiclass import OneVsRestClassifier
from tables import publish
from torch import Tensor, nn

from pml_supcon.losses import SupConLossOut
from pml_supcon.targets import LabelSets

EPOCHS, BATCH_SIZE, SEEDS, TEMPERATURE = 200, 250, 5, 0.1
PENALTIES = (0.001, 0.01, 0.1, 1.0)  # inverse L2
HEADER = ["training of the encoder", "mAP", "F1, micro", "F1, macro"]

Scores = tuple[float, float, float]


def main(arguments: Sequence[str] | None = None) -> list[list[str]]:
    """Train and score all methods, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the file yeast.npz")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs, and no record")
    options = parser.parse_args(arguments)
    seeds, epochs = (1, 2) if options.quick else (SEEDS, EPOCHS)
    data = {name: torch.from_numpy(array).float() for name, array in np.load(options.data).items()}
    center, scale = data["train_x"].mean(dim=0), data["train_x"].std(dim=0)
    for part in ("train_x", "test_x"):
        data[part] = (data[part] - center) / scale
    rows = []
    for name, method in METHODS.items():
        found = [method(data, epochs, seed) for seed in range(seeds)]
        rows.append([name, *(spread(values) for values in zip(*found, strict=True))])
        print(rows[-1], flush=True)
    publish("label_sets", HEADER, rows, quick=options.quick)
    return rows


def spread(values: Sequence[float]) -> str:
    """Format the mean and the standard deviation of a score."""
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


Method = Callable[[dict[str, Tensor], int, int], Scores]


def raw(data: dict[str, Tensor], epochs: int, seed: int) -> Scores:
    """Score the features themselves."""
    return probe(data["train_x"], data["train_y"], data["test_x"], data["test_y"], seed)


def contrastive(loss: nn.Module, label: Callable[[Tensor], Tensor]) -> Method:
    """Return the method that trains with a loss over labels made from the label sets."""

    def method(data: dict[str, Tensor], epochs: int, seed: int) -> Scores:
        encoder = tabular.train(
            data["train_x"], label(data["train_y"]), loss, None, epochs=epochs, batch_size=BATCH_SIZE, seed=seed
        )
        return probe(encoder(data["train_x"]), data["train_y"], encoder(data["test_x"]), data["test_y"], seed)

    return method


class ClassifierAndHead(nn.Module):
    """A classifier and a projection head side by side: features ``(N, WIDTH)`` to ``(N, labels + HEAD_WIDTH)``."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.classifier, self.head = nn.Linear(tabular.WIDTH, labels), tabular.build_head()

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits and the embeddings, concatenated."""
        return torch.cat([self.classifier(features), self.head(features)], dim=-1)


def binary_cross_entropy(
    contrast: nn.Module | None = None, label: Callable[[Tensor], Tensor] = torch.Tensor.bool, weight: float = 0.1
) -> Method:
    """Return the method that trains encoder and classifier together, with a weighted contrastive loss if given."""

    def method(data: dict[str, Tensor], epochs: int, seed: int) -> Scores:
        number = data["train_y"].shape[1]

        def loss(outputs: Tensor, labels: Tensor) -> Tensor:
            logits, rows = outputs[..., :number], outputs[..., number:]
            value = F.binary_cross_entropy_with_logits(logits, labels[:, None].expand_as(logits))
            return value if contrast is None else value + weight * contrast(rows, label(labels))

        torch.manual_seed(seed)
        top = ClassifierAndHead(number)
        encoder = tabular.train(
            data["train_x"], data["train_y"], loss, top, epochs=epochs, batch_size=BATCH_SIZE, seed=seed
        )
        with torch.no_grad():
            return scores(data["test_y"], top.classifier(encoder(data["test_x"])).sigmoid())

    return method


def powerset(sets: Tensor) -> Tensor:
    """Return the class of each label set ``(N, C)``: equal sets are one class, ``(N,)``."""
    classes: Tensor = torch.unique(sets, dim=0, return_inverse=True)[1]
    return classes


def probe(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, seed: int) -> Scores:
    """Score a logistic regression for each label on frozen features."""

    def fitted(x: Tensor, y: Tensor, penalty: float) -> OneVsRestClassifier:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return OneVsRestClassifier(LogisticRegression(C=penalty, max_iter=200)).fit(x.numpy(), y.numpy())

    center, scale = train.mean(dim=0), train.std(dim=0).clamp(min=1e-6)
    train, test = (train - center) / scale, (test - center) / scale
    fit, choose = (torch.tensor(part) for part in train_test_split(range(len(train)), test_size=0.2, random_state=seed))

    def chosen_by(penalty: float) -> float:
        found = fitted(train[fit], labels[fit], penalty).predict_proba(train[choose].numpy())
        return float(average_precision_score(labels[choose].numpy(), found, average="micro"))

    best = max(PENALTIES, key=chosen_by)
    return scores(test_labels, torch.from_numpy(fitted(train, labels, best).predict_proba(test.numpy())))


def scores(labels: Tensor, shares: Tensor) -> Scores:
    """Return mAP over labels, and F1 over all decisions and over labels, of probabilities ``(N, C)``."""
    true, decided = labels.numpy(), (shares > 0.5).numpy()
    return (
        float(average_precision_score(true, shares.numpy(), average="macro")),
        float(f1_score(true, decided, average="micro")),
        float(f1_score(true, decided, average="macro", zero_division=0)),
    )


def sets_loss(*arguments: str, **options: float | str) -> nn.Module:
    """Return the loss over label sets."""
    return SupConLossOut(TEMPERATURE, target=LabelSets(*arguments, **options))  # type: ignore[arg-type]


METHODS: dict[str, Method] = {
    "none: the features themselves": raw,
    "binary cross entropy, its own classifier": binary_cross_entropy(),
    '... and 0.1 `LabelSets("jaccard")`': binary_cross_entropy(sets_loss()),
    "... and 0.1 `SupConLossOut`, each label set a class": binary_cross_entropy(SupConLossOut(TEMPERATURE), powerset),
    "`SupConLossOut`, each label set a class": contrastive(SupConLossOut(TEMPERATURE), powerset),
    '`LabelSets("any")`': contrastive(sets_loss("any"), torch.Tensor.bool),
    '`LabelSets("overlap")`': contrastive(sets_loss("overlap"), torch.Tensor.bool),
    '`LabelSets("jaccard")`': contrastive(sets_loss(), torch.Tensor.bool),
    '`LabelSets("jaccard", 0.5, "count")`, as PML 3': contrastive(
        sets_loss(threshold=0.5, normalization="count"), torch.Tensor.bool
    ),
}


if __name__ == "__main__":
    main()
