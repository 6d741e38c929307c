"""The methods of stage 1: the head or classifier on the encoder, and the loss."""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning.losses import ContrastiveLoss, NPairsLoss, TripletMarginLoss
from torch import Tensor, nn

from pml_supcon import losses
from pml_supcon.data.label_kinds import classes_of
from pml_supcon.losses import GlobalBatchLoss
from pml_supcon.miners import CappedPositivesMiner, MeasuredMiner, OnlineHardExampleMiner
from pml_supcon.models import PredictionHead, ProjectionHead
from pml_supcon.targets import Hierarchy, Kernel, LabelSets, SoftLabels, Target
from pml_supcon.training.config import TrainSettings
from pml_supcon.training.config.settings import LEARNT_RANGE, SUPCON, WITHOUT_LABELS
from pml_supcon.views import flatten_views, split_views

Part = TypeVar("Part", bound=nn.Module)
TRIPLET_MARGIN, PAIR_MARGIN = 0.05, 1.0  # of distances between unit vectors; PML's own
SEMI_HARD_MARGIN = 0.2  # Schroff et al. (FaceNet, CVPR 2015)


class EncoderWithTop(nn.Module):
    """An encoder under a projection head or a classifier: views ``(B, V, C, H, W)`` to ``(B, V, D)``."""

    def __init__(self, encoder: nn.Module, top: nn.Module, *, channels_last: bool = False) -> None:
        super().__init__()
        self.encoder, self.top = encoder, top
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)

    def forward(self, views: Tensor) -> Tensor:
        """Encode all views in one batch, so that they share BatchNorm statistics."""
        rows: Tensor = self.top(self.features(flatten_views(views)))
        return split_views(rows, views.shape[1])

    def features(self, images: Tensor) -> Tensor:
        """Return the features ``(N, width)`` of images ``(N, C, H, W)``."""
        features: Tensor = self.encoder(images.contiguous(memory_format=self.memory_format))
        return features


class HeadAndClassifier(nn.Module):
    """A projection head and a classifier side by side: features ``(N, width)`` to ``(N, D + C)``.

    With ``alone``, the classifier's gradient stops, so that only the head trains the encoder.
    """

    def __init__(self, head: nn.Module, classifier: nn.Module, *, alone: bool) -> None:
        super().__init__()
        self.head, self.classifier, self.alone = head, classifier, alone

    def forward(self, features: Tensor) -> Tensor:
        """Return the embeddings and the logits, concatenated."""
        logits = self.classifier(features.detach() if self.alone else features)
        return torch.cat([self.head(features), logits], dim=-1)


class HeadAndPredictor(nn.Module):
    """A projection head and a predictor on it: features ``(N, width)`` to projections and predictions ``(N, 2 D)``."""

    def __init__(self, head: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.head, self.predictor = head, predictor

    def forward(self, features: Tensor) -> Tensor:
        """Return the projections and the predictions, concatenated."""
        projections = self.head(features)
        return torch.cat([projections, self.predictor(projections)], dim=-1)


def build_top(settings: TrainSettings, width: int, num_classes: int) -> nn.Module:
    """Build the module on an encoder of this feature width: a head, a classifier, or both; or a head and predictor."""
    classifier = nn.Linear(width, num_classes) if settings.has_classifier else None
    if classifier is not None and not settings.contrastive:
        return classifier
    head = ProjectionHead(
        width,
        settings.head_dim,
        hidden_features=settings.head_width,
        num_layers=settings.head_layers,
        batch_norm=settings.head_batch_norm,
    )
    if settings.method == "nnclr":
        return HeadAndPredictor(head, PredictionHead(settings.head_dim, hidden_features=settings.predictor_width))
    return head if classifier is None else HeadAndClassifier(head, classifier, alone=settings.classifier_alone)


def part_of(top: nn.Module, kind: type[Part]) -> Part | None:
    """Return the ``ProjectionHead`` or the ``nn.Linear`` classifier of a module from ``build_top``, or None."""
    parts = tuple(top.children()) if isinstance(top, HeadAndClassifier | HeadAndPredictor) else (top,)
    return next((part for part in parts if isinstance(part, kind)), None)


class Criterion(nn.Module):
    """The loss of a batch over all processes: outputs ``(B, V, D)``, labels ``(B, ...)`` and a momentum encoder's keys.

    Attributes:
        miner: The miner with its statistics, or None.

    Its parameters, a learnt temperature, are trained too; data parallelism does not average their gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.miner: MeasuredMiner | None = None  # set on the instance: a class attribute would hide the module

    def forward(self, outputs: Tensor, labels: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        raise NotImplementedError

    def temperature(self) -> float | None:
        """Return the learnt temperature, or None; the host waits for its device."""
        learnt = [part for part in self.modules() if isinstance(part, losses.LearnableTemperature)]
        return learnt[0].number if learnt else None

    def nn_accuracy(self) -> float | None:
        """Return the share of neighbours of the right class in the last batch, or None; the host waits for it."""
        found = [part for part in self.modules() if isinstance(part, losses.NearestNeighbourLoss)]
        return None if not found or found[0].nn_accuracy is None else float(found[0].nn_accuracy)

    def embeddings(self, outputs: Tensor) -> Tensor | None:
        """Return the embeddings in the outputs ``(B, V, D)``, or None."""
        return outputs


class Contrastive(Criterion):
    """A loss of pairs or triplets over the embeddings of all processes, with or without a miner."""

    def __init__(self, loss: nn.Module, miner: nn.Module | None, *, labelled: bool) -> None:
        super().__init__()
        self.miner = None if miner is None else MeasuredMiner(miner)
        self.loss = GlobalBatchLoss(loss, miner=self.miner)
        self.labelled = labelled

    def forward(self, outputs: Tensor, labels: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        loss: Tensor = self.loss(outputs, labels if self.labelled else None, keys=keys)
        return loss


class NeighbourContrast(Criterion):
    """NNCLR on the projections and the predictions, the first and the last ``head_dim`` columns of the outputs.

    Classes are used for ``nn_accuracy``, and by the loss if its ``neighbours`` are of classes.
    """

    def __init__(self, loss: nn.Module, head_dim: int) -> None:
        super().__init__()
        self.loss = GlobalBatchLoss(loss)
        self.head_dim = head_dim

    def forward(self, outputs: Tensor, labels: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        del keys
        projections, predictions = outputs[..., : self.head_dim], outputs[..., self.head_dim :]
        loss: Tensor = self.loss(predictions, classes_of(labels), projections=projections.detach())
        return loss

    def embeddings(self, outputs: Tensor) -> Tensor:
        """Return the projections."""
        return outputs[..., : self.head_dim]


class Classification(Criterion):
    """The cross entropy of all views of this process; data parallelism averages the gradients over processes."""

    def __init__(self, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, outputs: Tensor, labels: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        del keys
        targets = labels.repeat(outputs.shape[1])  # (V * B,), as ``flatten_views`` orders the rows
        return F.cross_entropy(flatten_views(outputs).float(), targets, label_smoothing=self.label_smoothing)

    def embeddings(self, outputs: Tensor) -> None:
        """Return None: logits are not embeddings."""


class Joint(Criterion):
    """The weighted sum of a contrastive loss on the first ``head_dim`` columns and cross entropy on the others."""

    def __init__(self, contrastive: Contrastive, classification: Classification, settings: TrainSettings) -> None:
        super().__init__()
        self.contrastive, self.classification = contrastive, classification
        self.miner = contrastive.miner
        self.head_dim = settings.head_dim
        self.weights = settings.supcon_weight, settings.classifier_weight

    def forward(self, outputs: Tensor, labels: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        keys = None if keys is None else keys[..., : self.head_dim]
        one = self.contrastive(outputs[..., : self.head_dim], labels, keys)
        other = self.classification(outputs[..., self.head_dim :], labels)
        loss: Tensor = self.weights[0] * one + self.weights[1] * other
        return loss

    def embeddings(self, outputs: Tensor) -> Tensor:
        """Return the first ``head_dim`` columns."""
        return outputs[..., : self.head_dim]


def build_criterion(settings: TrainSettings, levels: int = 1) -> Criterion:
    """Build the loss of the settings; ``levels`` is the number of levels of a hierarchy of labels."""
    if not settings.contrastive:
        return Classification(settings.label_smoothing)
    if settings.method == "nnclr":
        return NeighbourContrast(build_loss(settings, levels), settings.head_dim)
    contrastive = Contrastive(build_loss(settings, levels), build_miner(settings), labelled=settings.method != "simclr")
    if not settings.has_classifier:
        return contrastive
    return Joint(contrastive, Classification(settings.label_smoothing), settings)


def build_target(settings: TrainSettings, levels: int = 1) -> Target | None:
    """Build the target of the loss for the labels of the settings; None for classes, and for a loss without labels.

    Raises:
        ValueError: If there is not one level weight for each of the ``levels`` of a hierarchy.
    """
    if settings.method in WITHOUT_LABELS:
        return None
    if settings.mixed or settings.labels == "soft":
        return SoftLabels()
    if settings.labels == "sets":
        return LabelSets(settings.target_similarity)
    if settings.labels == "numbers":
        assert settings.sigma is not None  # `check_labels`
        return Kernel(settings.sigma)
    if settings.labels == "classes":
        return None
    weights = settings.level_weights or [1 / levels] * levels
    if len(weights) != levels:
        raise ValueError(f"Expected --level_weights for each of {levels} levels, but got {weights}")
    return Hierarchy(weights)


def build_loss(settings: TrainSettings, levels: int = 1) -> Any:
    """Build the loss of pairs or triplets: ours, or PML's for the other methods of the paper.

    Raises:
        ValueError: If the method has none, or level weights do not fit the levels of a hierarchy.
    """
    if settings.method == "npairs":
        return NPairsLoss()
    if settings.method == "triplet":
        return TripletMarginLoss(
            margin=TRIPLET_MARGIN if settings.margin is None else settings.margin,
            triplets_per_anchor=settings.triplets_per_anchor or "all",
        )
    if settings.method == "max_margin":
        return ContrastiveLoss(pos_margin=0, neg_margin=PAIR_MARGIN if settings.margin is None else settings.margin)
    if settings.method not in (*SUPCON, "nnclr"):
        raise ValueError(f"Expected argument `method` to have a loss in `build_loss`, but got {settings.method!r}")
    kind = losses.SupConLossIn if settings.method == "supcon_in" else losses.SupConLossOut
    learnt = losses.LearnableTemperature(settings.temperature, *LEARNT_RANGE) if settings.learn_temperature else None
    temperature = settings.temperature if learnt is None else learnt
    if settings.method == "nnclr":
        assert settings.queue_rows is not None  # for the type checker: it has a default
        one_direction = losses.SupConLossOut(temperature, backend=settings.backend)
        return losses.NearestNeighbourLoss(
            one_direction, settings.head_dim, settings.queue_rows, neighbours=settings.neighbours
        )
    loss = kind(
        temperature,
        denominator=settings.denominator,
        contrast_mode=settings.contrast_mode,
        positives_cap=settings.positives_cap,
        class_balanced=settings.class_balanced,
        target=build_target(settings, levels),
        num_views=settings.views,
        scale_by_temperature=settings.scale_by_temperature,
        backend=settings.backend,
    )
    if settings.queue_size is None:
        return loss
    return losses.QueueLoss(loss, settings.head_dim, settings.queue_size)


def build_miner(settings: TrainSettings) -> nn.Module | None:
    """Build the miner of the settings, or return None."""
    # semi-hard triplets of the triplet loss use its margin, so that every mined triplet has a gradient
    semi_hard = settings.margin or (TRIPLET_MARGIN if settings.method == "triplet" else SEMI_HARD_MARGIN)
    builders: dict[str | None, Any] = {
        None: lambda: None,
        "batch_hard": pml_miners.BatchHardMiner,
        "semi_hard": lambda: pml_miners.TripletMarginMiner(margin=semi_hard, type_of_triplets="semihard"),
        "distance_weighted": pml_miners.DistanceWeightedMiner,
        "ohem": lambda: OnlineHardExampleMiner(
            settings.miner_share, kind="triplets" if settings.method == "triplet" else "pairs"
        ),
        "capped_positives": lambda: CappedPositivesMiner(settings.miner_cap, choose=settings.miner_choice),
    }
    miner: nn.Module | None = builders[settings.miner]()
    return miner
