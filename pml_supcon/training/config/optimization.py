"""How long and by which steps it is trained, in both stages."""

from dataclasses import dataclass, field
from typing import Any, Literal

from pml_supcon.training.config.data import Augment

Schedule = Literal["cosine", "steps", "exponential", "constant"]


@dataclass(frozen=True, kw_only=True)
class Stage1Settings:
    """The optimisation of stage 1.

    Attributes:
        epochs: passes over the training images.
        optimizer: any timm optimizer (`sgd`, `lars`, `rmsprop`, `adamw`, ...).
        optimizer_args: its keyword arguments, such as `momentum`.
        learning_rate: peak learning rate.
        scale_learning_rate: multiply it by the batch size over 256.
        weight_decay: weight decay; not on biases and norms.
        decay_all: weight decay on biases and norms too, and LARS's adaptation.
        warmup_epochs: epochs of linear warm-up.
        schedule: what follows; `exponential` decays every `decay_epochs[0]` epochs.
        decay_epochs: epochs at which `steps` decays.
        decay_rate: factor of each decay.
        clip_gradient_norm: scale gradients down to at most this norm; default: not.
        ema: keep an exponential moving average of the weights, whose decay rises from 0 to this (timm's warm-up), and
            score it; default: none.
        sync_batch_norm: BatchNorm over the batches of all processes, on GPUs.
        mixed_precision: as accelerate's; default: what `accelerate launch` was told.
        compile: `torch.compile` the model.
        channels_last: memory layout of images and convolutions.
    """

    epochs: int = 25
    optimizer: str = "sgd"
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 0.1
    scale_learning_rate: bool = False
    weight_decay: float = 1e-4
    decay_all: bool = False
    warmup_epochs: float = 1.0
    schedule: Schedule = "cosine"
    decay_epochs: list[float] = field(default_factory=list)
    decay_rate: float = 0.1
    clip_gradient_norm: float | None = None
    ema: float | None = None
    sync_batch_norm: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    compile: bool = False
    channels_last: bool = False


@dataclass(frozen=True, kw_only=True)
class Stage2Settings:
    """The linear classifier on the frozen encoder: logistic regression on its features, or an optimizer of your choice.

    Attributes:
        stage2_optimizer: any timm optimizer, over augmented images, as in the paper; default: L-BFGS on features that
            are computed once.
        stage2_optimizer_args: its keyword arguments.
        stage2_epochs: passes over the training images.
        stage2_batch_size: images in a batch, over all processes; default: as in stage 1.
        stage2_augment: what makes the views, one of each image; default: as in stage 1.
        stage2_learning_rate: peak learning rate.
        stage2_scale_learning_rate: multiply it by the batch size over 256.
        stage2_weight_decay: weight decay; not on biases.
        stage2_warmup_epochs: epochs of linear warm-up.
        stage2_schedule: what follows.
        stage2_decay_epochs: as `decay_epochs`.
        stage2_decay_rate: as `decay_rate`.
        stage2_label_smoothing: of its cross entropy.
    """

    stage2_optimizer: str | None = None
    stage2_optimizer_args: dict[str, Any] = field(default_factory=dict)
    stage2_epochs: int = 10
    stage2_batch_size: int | None = None
    stage2_augment: Augment | None = None
    stage2_learning_rate: float = 0.1
    stage2_scale_learning_rate: bool = False
    stage2_weight_decay: float = 0.0
    stage2_warmup_epochs: float = 0.0
    stage2_schedule: Schedule = "cosine"
    stage2_decay_epochs: list[float] = field(default_factory=list)
    stage2_decay_rate: float = 0.1
    stage2_label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The optimisation of one stage, with the fields of `Stage1Settings`; `learning_rate` is the one for its batch."""

    epochs: int
    optimizer: str
    optimizer_args: dict[str, Any]
    learning_rate: float
    weight_decay: float
    warmup_epochs: float
    schedule: Schedule
    decay_epochs: list[float]
    decay_rate: float
    decay_all: bool = False
    clip_gradient_norm: float | None = None
