"""Segment touching digits by class, with or without a contrastive loss of the pixels beside the cross entropy.

    python recipes/segmentation.py                                # cross entropy alone: 0.784 (seeds 0 to 2)
    python recipes/segmentation.py --auxiliary pixel              # ... and `PixelSupConLoss`: 0.791
    python recipes/segmentation.py --auxiliary prototype          # ... and `MaskPrototypeLoss`: 0.785
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 recipes/segmentation.py --auxiliary pixel

Canvases of 32 x 32 pixels hold up to six digits of scikit-learn's that touch; no digit is on both training and test
canvases. A small encoder-decoder gives each pixel one of eleven classes, the background among them. It is scored once,
on the test canvases, by the mean of the classes' intersections over unions. 20 seconds on one core.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from sklearn.metrics import jaccard_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pml_supcon.data.digit_canvas import digit_canvases
from pml_supcon.data.load import load_data
from pml_supcon.losses import GlobalBatchLoss, MaskPrototypeLoss, PixelSupConLoss, SupConLossOut
from pml_supcon.training.config.parser import OneLineParser, normalised

CLASSES = 11  # ten digits and the background


@dataclass(frozen=True)
class Settings:
    """The settings of a run.

    Attributes:
        auxiliary: the loss beside the cross entropy: none, pixel or prototype.
        auxiliary_weight: the factor of the auxiliary loss.
        num_pixels: pixels of an image that the loss "pixel" draws.
        train: training canvases.
        test: test canvases.
        epochs: passes over the training canvases.
        batch_size: canvases of a step, on each process.
        lr: the highest learning rate.
        seed: of the weights, the order and the draws.
    """

    auxiliary: Literal["none", "pixel", "prototype"] = "none"
    auxiliary_weight: NonNegativeFloat = 0.1
    num_pixels: PositiveInt = 64
    train: PositiveInt = 400
    test: PositiveInt = 300
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 16
    lr: PositiveFloat = 0.005
    seed: NonNegativeInt = 0


class EncoderDecoder(nn.Module):
    """A small U-Net: images ``(B, 1, S, S)`` to logits ``(B, CLASSES, S, S)`` and embeddings ``(B, 32, S, S)``."""

    def __init__(self, *, with_head: bool) -> None:
        super().__init__()
        self.fine, self.middle, self.coarse = block(1, 16), block(16, 32), block(32, 64)
        self.to_middle, self.to_fine = block(64 + 32, 32), block(32 + 16, 16)
        self.classifier = nn.Conv2d(16, CLASSES, 1)
        self.head = nn.Sequential(nn.Conv2d(16, 64, 1), nn.ReLU(), nn.Conv2d(64, 32, 1)) if with_head else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits, and the embeddings if there is a projection head."""
        fine = self.fine(images)  # (B, 16, S, S)
        middle = self.middle(F.max_pool2d(fine, 2))  # (B, 32, S/2, S/2)
        coarse = self.coarse(F.max_pool2d(middle, 2))  # (B, 64, S/4, S/4)
        middle = self.to_middle(torch.cat([F.interpolate(coarse, scale_factor=2), middle], dim=1))
        fine = self.to_fine(torch.cat([F.interpolate(middle, scale_factor=2), fine], dim=1))
        return self.classifier(fine), None if self.head is None else self.head(fine)


def block(before: int, after: int) -> nn.Sequential:
    """Return two convolutions, each with batch normalisation."""
    return nn.Sequential(
        *(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()),
        *(nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()),
    )


def auxiliary_loss(settings: Settings, process: int) -> nn.Module | None:
    """Return the loss of embeddings ``(B, 32, S, S)`` and classes ``(B, S, S)``, or None."""
    if settings.auxiliary == "pixel":  # pixels of all processes; each draws its own
        over_all = GlobalBatchLoss(SupConLossOut(temperature=0.1))
        seed = settings.seed + 1000 * process
        return PixelSupConLoss(over_all, num_pixels=settings.num_pixels, by="class", seed=seed)
    return MaskPrototypeLoss(temperature=0.3) if settings.auxiliary == "prototype" else None


def train_and_score(settings: Settings) -> float:
    """Train an encoder-decoder and return its mean intersection over union on the test canvases."""
    # 1. Canvases: the digits of the test canvases are the held-out 30% of scikit-learn's.
    accelerator = Accelerator()
    if settings.train < (needed := settings.batch_size * accelerator.num_processes):
        raise SystemExit(
            f"segmentation.py: error: Expected `train` to be at least {needed}, a batch for each process, but got "
            f"{settings.train}"
        )
    torch.manual_seed(settings.seed)
    digits = load_data("digits")
    canvases = digit_canvases(digits.train.images, digits.train_labels, settings.train, seed=settings.seed)
    test_canvases = digit_canvases(digits.test.images, digits.test_labels, settings.test, seed=0)
    train, test = (TensorDataset(images / 255, classes) for images, classes in (canvases, test_canvases))
    loader = DataLoader(train, settings.batch_size, shuffle=True, drop_last=True)

    # 2. Model, loss, optimiser: one cycle of the learning rate.
    model = EncoderDecoder(with_head=settings.auxiliary != "none")
    auxiliary = auxiliary_loss(settings, accelerator.process_index)
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.epochs * len(loader))
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    test_loader = accelerator.prepare_data_loader(DataLoader(test, 100))

    # 3. Loop: cross entropy of all pixels, and the auxiliary loss of their embeddings.
    for epoch in range(settings.epochs):
        model.train()
        for images, classes in loader:
            logits, embeddings = model(images)
            loss = F.cross_entropy(logits, classes)
            if auxiliary is not None:
                loss = loss + settings.auxiliary_weight * auxiliary(embeddings, classes)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
        accelerator.print(f"epoch {epoch + 1:2}: loss {loss.item():.3f}")

    # 4. Score: the mean over classes of intersection over union, all test pixels together.
    model.eval()
    with torch.no_grad():
        pairs = [
            accelerator.gather_for_metrics((model(images)[0].argmax(dim=1), classes)) for images, classes in test_loader
        ]
    found, wanted = (torch.cat(part).flatten().cpu() for part in zip(*pairs, strict=True))
    score = float(jaccard_score(wanted, found, average="macro", labels=range(CLASSES), zero_division=0))
    accelerator.print(f"mean IoU: {score:.4f}")
    return score


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Return the settings of a command line; an error is one line with exit status 2."""
    names = [field.name for field in fields(Settings)]
    parser = OneLineParser(names=names, prog="segmentation.py", description=__doc__)
    parser.add_class_arguments(Settings, None)
    parsed = parser.parse_args(normalised(sys.argv[1:] if arguments is None else arguments, set()))
    return Settings(**{name: parsed[name] for name in names})


if __name__ == "__main__":
    train_and_score(parse())
