"""The settings of a training run in six groups, as dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Method = Literal["supcon_out", "supcon_in", "simclr", "npairs", "triplet", "max_margin", "cross_entropy", "joint"]
Miner = Literal["batch_hard", "semi_hard", "distance_weighted", "ohem", "capped_positives"]
Denominator = Literal["all", "one_positive", "negatives"]

SUPCON = ("supcon_out", "supcon_in", "simclr", "joint")  # methods with a loss of ours
MARGIN = ("triplet", "max_margin")
CLASSIFIER = ("cross_entropy", "joint")  # methods of one stage
MINED = ("supcon_out", "supcon_in", "joint", "npairs", *MARGIN)


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """The loss of stage 1.

    Attributes:
        method: the loss; `simclr` ignores the labels, `joint` is supcon_out on the head plus cross entropy on a
            classifier beside it.
        temperature: tau of the supcon losses.
        denominator: the denominator of the supcon losses.
        contrast_mode: which views are anchors in the supcon losses.
        positives_cap: at most this many positives besides an anchor's own other views, in the supcon losses.
        scale_by_temperature: multiply the supcon loss by tau.
        backend: which engine computes the supcon losses.
        queue_size: contrast with this many past rows too (at least a batch of them); default: none.
        momentum: fill the queue by a momentum encoder, which keeps this share of itself a step; default: by the encoder
            that is trained.
        chunk_size: most images that pass the encoder at once on a process, all views of each; default: all of a batch.
        margin: of `triplet` (default 0.05) and of `max_margin` (distance beyond which negatives count no more,
            default 1).
        triplets_per_anchor: of `triplet` without a miner: so many, drawn at random; default: all.
        label_smoothing: of the cross entropy of `cross_entropy` and `joint`.
        supcon_weight: weight of the supcon loss in `joint`.
        classifier_weight: weight of the cross entropy in `joint`.
        classifier_alone: `joint` trains the encoder by the supcon loss alone; the classifier's gradient stops before.
        miner: which pairs or triplets of a batch the loss sees; default: all.
        miner_share: share of pairs or triplets that `ohem` keeps.
        miner_cap: positives an anchor that `capped_positives` keeps.
        miner_choice: which ones it keeps.
    """

    method: Method = "supcon_out"
    temperature: float = 0.1
    denominator: Denominator = "all"
    contrast_mode: Literal["all", "one"] = "all"
    positives_cap: int | None = None
    scale_by_temperature: bool = False
    backend: Literal["auto", "triton", "tiled", "reference"] = "auto"
    queue_size: int | None = None
    momentum: float | None = None
    chunk_size: int | None = None
    margin: float | None = None
    triplets_per_anchor: int | None = None
    label_smoothing: float = 0.0
    supcon_weight: float = 1.0
    classifier_weight: float = 1.0
    classifier_alone: bool = False
    miner: Miner | None = None
    miner_share: float = 0.25
    miner_cap: int = 1
    miner_choice: Literal["random", "hardest", "easiest"] = "random"

    @property
    def contrastive(self) -> bool:
        """Whether stage 1 trains a projection head."""
        return self.method != "cross_entropy"

    @property
    def has_classifier(self) -> bool:
        """Whether stage 1 trains the classifier too, so that there is no stage 2."""
        return self.method in CLASSIFIER


Augment = Literal["auto", "none", "digits", "simclr", "simaugment", "autoaugment", "randaugment", "stacked_randaugment"]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Images, their augmentation, and batches.

    Attributes:
        data: `digits`, `torchvision:NAME`, `imagefolder:PATH` or `hf:PATH_OR_ID`.
        image_size: side in pixels; default: the images' own where small, else 224.
        max_train: use at most this many training images.
        max_test: use at most this many test images.
        train_fraction: use this share of the training images, every class in its share.
        label_noise: share of the training images whose label becomes another class, drawn with the seed; both stages
            see it, retrieval is scored by the true labels.
        held_out: share of the training images that is not trained on, for the k-NN accuracy in between.
        scored: the images that the encoder is scored on at the end: `test`, or `held_out`, which leaves the test split
            alone while settings are chosen.
        augment: what makes the views; auto: `digits` for small symbols, else `simclr`.
        views: views of each image in a batch.
        batch_size: images in the global batch, over all processes, each in `views` views.
        max_per_class: cap on the images of one class in a batch.
        samples_per_class: exactly this many images of each class present in a batch, instead.
        workers: processes that load images; 0: none. They do not change what is drawn.
        data_on_device: keep images on the accelerator and make the views there; auto: where it is a GPU and the images
            are held in memory.
    """

    data: str = "digits"
    image_size: int | None = None
    max_train: int | None = None
    max_test: int | None = None
    train_fraction: float = 1.0
    label_noise: float = 0.0
    held_out: float = 0.0
    scored: Literal["test", "held_out"] = "test"
    augment: Augment = "auto"
    views: int = 2
    batch_size: int = 256
    max_per_class: int | None = None
    samples_per_class: int | None = None
    workers: int = 0
    data_on_device: Literal["auto"] | bool = "auto"


DEFAULT_ENCODER = "resnet10t"
DEFAULT_ENCODER_ARGS = {"channels": [32, 64, 128, 256]}


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The encoder and its projection head.

    Attributes:
        encoder: any timm model; default: a narrow resnet10t, with 32 to 256 channels.
        encoder_args: keyword arguments of the timm model.
        small_stem: 3x3 stem without max-pool; auto: where images are small.
        pretrained: start from timm's weights, from the hub.
        encoder_weights: start from these: a file (.safetensors, .pt, .pth), or a folder such as `RUN/encoder`.
        head_layers: linear layers of the projection head; 1: a linear head.
        head_width: width of its hidden layers; default: the encoder's.
        head_dim: width of the projection.
        head_batch_norm: BatchNorm after its hidden layers.
    """

    encoder: str | None = None
    encoder_args: dict[str, Any] = field(default_factory=dict)
    small_stem: Literal["auto"] | bool = "auto"
    pretrained: bool = False
    encoder_weights: Path | None = None
    head_layers: int = 2
    head_width: int | None = None
    head_dim: int = 128
    head_batch_norm: bool = False


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


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Files, checkpoints and what is watched.

    Attributes:
        output: the run's folder; default: a new folder under `runs/`.
        seed: seed of weights, batches and augmentation.
        resume: go on from the newest checkpoint in `output`; start where there is none.
        save_every: steps between checkpoints; default: at the end of each epoch.
        keep: so many checkpoints are kept.
        tracker: a tracker of Accelerate's (tensorboard, wandb, trackio, ...) that is told too; `history.jsonl` in the
            run's folder always is.
        knn_every: epochs between k-NN accuracies of the held-out images, where there are any.
        pictures: draw the loss curve, the map of the embeddings and the gallery.
    """

    output: Path | None = None
    seed: int = 0
    resume: bool = False
    save_every: int | None = None
    keep: int = 2
    tracker: str | None = None
    knn_every: int = 5
    pictures: bool = True


#: Settings that may differ when a run goes on: they do not change what it computes.
FREE_TO_CHANGE = frozenset({"output", "resume", "save_every", "keep", "tracker", "workers", "pictures"})
