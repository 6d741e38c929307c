"""Stage 2 of the paper: a linear classifier on the frozen encoder, trained over augmented images."""

import torch
from torch import Tensor, nn

from pml_supcon.models import feature_width
from pml_supcon.training.methods import EncoderWithTop


class FrozenEncoderWithClassifier(EncoderWithTop):
    """An encoder that stays as it is, BatchNorm's statistics included, under a linear classifier that is trained."""

    def __init__(self, encoder: nn.Module, num_classes: int, *, channels_last: bool = False) -> None:
        super().__init__(encoder, nn.Linear(feature_width(encoder), num_classes), channels_last=channels_last)
        encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> "FrozenEncoderWithClassifier":
        """Put the classifier alone into training mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """What the encoder gives, without a graph."""
        with torch.no_grad():
            return super().features(images)
