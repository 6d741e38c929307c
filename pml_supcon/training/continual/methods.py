"""The losses of continual learning: Co2L's asymmetric supcon loss and distillation, and its comparators."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pml_supcon.losses import GlobalBatchLoss, RelationDistillation
from pml_supcon.models import MomentumEncoder
from pml_supcon.training.continual.settings import ContinualSettings
from pml_supcon.training.methods import Criterion, build_criterion, build_loss


class PastModel(MomentumEncoder):
    """The frozen model of the end of the task before, in evaluation mode; its embeddings are the keys of a batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.eval()

    def update_parameters(self, online: nn.Module) -> None:
        """Keep the weights, unlike a momentum encoder."""

    def train(self, mode: bool = True) -> "PastModel":
        """Stay in evaluation mode."""
        del mode
        super().train(False)
        return self


class Co2L(Criterion):
    r"""The loss of Co2L over all processes (Cha, Lee and Shin, ICCV 2021, equations 3, 7 and 8).

        L = weight_c * L_asym + weight_d * L_ird

    ``L_asym`` is the supcon loss whose anchors are the rows of the present task; rows of the buffer are contrasted. The
    distillation ``L_ird`` keeps the similarities of all rows as in the past model, whose embeddings are the ``keys``.

    Args:
        contrastive: The supcon loss.
        distillation: The distillation.
        present: The labels whose rows are anchors; None: all rows.
        weights: The weights of both losses.
    """

    present: Tensor | None

    def __init__(
        self,
        contrastive: nn.Module,
        distillation: nn.Module,
        present: Sequence[int] | None,
        weights: tuple[float, float],
    ) -> None:
        super().__init__()
        self.contrastive = GlobalBatchLoss(contrastive)
        self.distillation = GlobalBatchLoss(distillation)
        labels = None if present is None else torch.tensor(present)
        self.register_buffer("present", labels, persistent=False)
        self.weights = weights

    def forward(self, outputs: Tensor, labels: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar; outputs and keys are ``(B, V, D)``, labels ``(B,)``."""
        contrastive, distillation = self.weights
        loss = outputs.new_zeros(())
        # 1. L_asym: the mean over the anchors, the samples (B,) of the present classes.
        if contrastive > 0:
            anchors = {} if self.present is None else {"anchors": torch.isin(labels, self.present)}
            loss = loss + contrastive * self.contrastive(outputs, labels, **anchors)
        # 2. L_ird: the mean over all rows.
        if keys is not None:
            loss = loss + distillation * self.distillation(outputs, past_embeddings=keys.to(outputs.dtype))
        return loss


def build_task_criterion(settings: ContinualSettings, number: int, present: Sequence[int]) -> Criterion:
    """Build the loss of a task, from 1, with the stream labels ``present``."""
    training = settings.of_task(number)
    if settings.method != "co2l":
        return build_criterion(training)
    distillation = RelationDistillation(settings.distill_temperature, settings.past_temperature)
    weights = (1.0, 0.0) if number == 1 else (settings.contrastive_weight, settings.distill_weight)
    anchors = present if settings.anchors == "present" else None
    return Co2L(build_loss(training), distillation, anchors, weights)
