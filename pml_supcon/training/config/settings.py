"""The settings of a training run in groups, as dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pml_supcon.data.label_kinds import LabelsAre
from pml_supcon.functional.supcon.options import TEMPERATURE, Backend, ContrastMode, Denominator, SupConOptions
from pml_supcon.losses.nearest_neighbour import Neighbours
from pml_supcon.miners.capped_positives import Choice
from pml_supcon.samplers.weighted_planner import Draw
from pml_supcon.targets import SetSimilarity
from pml_supcon.views.augmentations import Augmentation

Method = Literal[
    "supcon_out", "supcon_in", "simclr", "nnclr", "npairs", "triplet", "max_margin", "cross_entropy", "joint"
]
Miner = Literal["batch_hard", "semi_hard", "distance_weighted", "ohem", "capped_positives"]

LEARNT_RANGE = 0.01, 1.0  # of a learnt temperature
NNCLR_QUEUE = 4096  # rows of its queue by default, if a batch is not larger
SUPCON = ("supcon_out", "supcon_in", "simclr", "joint")  # methods with a loss of ours
WITHOUT_LABELS = ("simclr", "nnclr")
MARGIN = ("triplet", "max_margin")
CLASSIFIER = ("cross_entropy", "joint")  # methods of one stage
MINED = ("supcon_out", "supcon_in", "joint", "npairs", *MARGIN)


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """The loss of stage 1.

    Attributes:
        method: the loss; `simclr` ignores labels, and so does `nnclr` with `neighbours` nearest; `joint` adds cross
            entropy on a classifier to supcon_out on the head.
        temperature: temperature tau of the supcon losses and of `nnclr`.
        learn_temperature: train the temperature with the model, from this value on; it stays in [0.01, 1].
        denominator: the denominator of the supcon losses.
        contrast_mode: which views are anchors in the supcon losses.
        positives_cap: maximum number of positives of an anchor besides its own other views, in the supcon losses.
        class_balanced: each class counts once in the denominator of the supcon losses, for long-tailed classes.
        scale_by_temperature: multiply the supcon loss by tau.
        target_similarity: similarity of two sets, with `labels` sets; see `targets.LabelSets`.
        level_weights: weight of each level of a hierarchy, coarse to fine; default: 1 over the number of levels.
        sigma: with `labels` numbers, the distance of two labels, in their unit, at which a weight is 0.61; required.
        backend: implementation of the supcon losses.
        queue_size: number of past rows to contrast with, at least a batch; default: none. With `nnclr` the rows among
            which neighbours are searched; default: 4096, or the batch size if that is larger.
        momentum: fill the queue with a momentum encoder of this decay; default: with the trained encoder.
        neighbours: the neighbour of an image in `nnclr`: the `nearest` row of the queue, or, with labels, the nearest
            row of its class (`same_class`), with all predictions of the class as positives (`positives`).
        predictor_width: width of the hidden layer of the predictor of `nnclr`.
        chunk_size: images, with all their views, in one forward pass of a process; default: the whole batch.
        margin: margin of `triplet` (default 0.05), or distance up to which `max_margin` repels negatives (default 1).
        triplets_per_anchor: random triplets of each anchor, for `triplet` without a miner; default: all.
        label_smoothing: label smoothing of the cross entropy of `cross_entropy` and `joint`.
        supcon_weight: weight of the supcon loss in `joint`.
        classifier_weight: weight of the cross entropy in `joint`.
        classifier_alone: in `joint`, stop the classifier's gradient, so that only the supcon loss trains the encoder.
        miner: miner of the pairs or triplets of a batch; default: all of them.
        miner_share: fraction of pairs or triplets that `ohem` keeps.
        miner_cap: positives that `capped_positives` keeps for each anchor.
        miner_choice: positives that `capped_positives` prefers.
    """

    method: Method = "supcon_out"
    temperature: float = TEMPERATURE
    learn_temperature: bool = False
    denominator: Denominator = "all"
    contrast_mode: ContrastMode = "all"
    positives_cap: int | None = SupConOptions.positives_cap
    class_balanced: bool = SupConOptions.class_balanced
    scale_by_temperature: bool = SupConOptions.scale_by_temperature
    target_similarity: SetSimilarity = "jaccard"
    level_weights: list[float] = field(default_factory=list)
    sigma: float | None = None
    backend: Backend = "auto"
    queue_size: int | None = None
    momentum: float | None = None
    neighbours: Neighbours = "nearest"
    predictor_width: int = 4096
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
    miner_choice: Choice = "random"

    @property
    def contrastive(self) -> bool:
        """True if stage 1 trains a projection head."""
        return self.method != "cross_entropy"

    @property
    def has_classifier(self) -> bool:
        """True if stage 1 trains the classifier, so that there is no stage 2."""
        return self.method in CLASSIFIER


Augment = Literal["auto", Augmentation]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Images, their augmentation, and batches.

    Attributes:
        data: `digits`, `torchvision:NAME`, `imagefolder:PATH` or `hf:PATH_OR_ID`.
        labels: the labels of an image: `classes`, `sets` of labels, `soft` shares of classes, a `hierarchy`, or
            `numbers`; see `load_data`.
        image_size: side in pixels; default: the largest shorter side of the images, at most 224.
        max_train: maximum number of training images.
        max_test: maximum number of test images.
        train_fraction: fraction of the training images to use, stratified by class.
        label_noise: fraction of the training images with a wrong label, drawn with the seed; both stages train on it,
            retrieval is scored with the true labels.
        held_out: fraction of the training images held out, for k-NN accuracy during training.
        scored: images for the final scores: `test`, or `held_out`, which keeps the test split untouched during tuning.
        augment: augmentation of the views; auto: `digits` for small symbols, else `simclr`.
        mixup: mix the images of each batch by mixup with this alpha; labels become shares of classes.
        cutmix: the same by CutMix; with both, each batch draws one.
        views: number of views of each image in a batch.
        batch_size: images in the global batch, over all processes, each in `views` views.
        max_per_class: maximum number of images of one class in a batch.
        samples_per_class: exact number of images of each class in a batch, instead.
        draw: probability of an image in a batch: `uniform`, or larger for rare classes.
        draw_beta: beta of `effective_number`, in (0, 1): 0.9 to 0.9999 in the paper.
        broken_images: an image that cannot be read: `raise` ends the run and lists all of them; `replace` decodes all
            images first, and reads the next one of the class in place of each.
        workers: number of loader processes; does not affect the batches.
        data_on_device: keep images and compute views on the GPU; auto: if there is one and the images fit into memory.
    """

    data: str = "digits"
    labels: LabelsAre = "classes"
    image_size: int | None = None
    max_train: int | None = None
    max_test: int | None = None
    train_fraction: float = 1.0
    label_noise: float = 0.0
    held_out: float = 0.0
    scored: Literal["test", "held_out"] = "test"
    augment: Augment = "auto"
    mixup: float | None = None
    cutmix: float | None = None
    views: int = 2
    batch_size: int = 256
    max_per_class: int | None = None
    samples_per_class: int | None = None
    draw: Draw = "uniform"
    draw_beta: float | None = None
    broken_images: Literal["raise", "replace"] = "raise"
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
        small_stem: 3x3 stem without max-pool; auto: for small images.
        pretrained: start from timm's weights, from the hub.
        encoder_weights: initial weights: a file (.safetensors, .pt, .pth), or a folder such as `RUN/encoder`.
        head_layers: number of linear layers of the projection head.
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
        schedule: schedule after warm-up; `exponential` decays every `decay_epochs[0]` epochs.
        decay_epochs: epochs at which `steps` decays.
        decay_rate: factor of each decay.
        clip_gradient_norm: maximum norm of the gradients; default: no clipping.
        ema: decay of an exponential moving average of the weights, which is scored; rises from 0 (timm's warm-up);
            default: none.
        sync_batch_norm: synchronise BatchNorm over all processes, on GPUs.
        mixed_precision: mixed precision; default: the choice of `accelerate launch`.
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
    """The linear classifier on the frozen encoder: logistic regression on its features, or a timm optimizer.

    Attributes:
        stage2_optimizer: any timm optimizer, over augmented images, as in the paper; default: L-BFGS on fixed features.
        stage2_optimizer_args: its keyword arguments.
        stage2_epochs: passes over the training images.
        stage2_batch_size: images in a batch, over all processes; default: as in stage 1.
        stage2_augment: augmentation of the single view of each image; default: as in stage 1.
        stage2_learning_rate: peak learning rate.
        stage2_scale_learning_rate: multiply it by the batch size over 256.
        stage2_weight_decay: weight decay; not on biases.
        stage2_warmup_epochs: epochs of linear warm-up.
        stage2_schedule: schedule after warm-up.
        stage2_decay_epochs: epochs at which `steps` decays.
        stage2_decay_rate: factor of each decay.
        stage2_label_smoothing: label smoothing of its cross entropy.
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
class OptimizationSettings:
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
    """Files and checkpoints.

    Attributes:
        output: folder of the run; default: a new folder under `runs/`.
        seed: seed of weights, batches and augmentation.
        resume: continue from the newest checkpoint in `output`; start if there is none.
        save_every: steps between checkpoints; default: at the end of each epoch.
        keep: number of checkpoints to keep.
        tracker: a tracker of Accelerate (tensorboard, wandb, trackio, ...), in addition to `history.jsonl` in the run's
            folder.
    """

    output: Path | None = None
    seed: int = 0
    resume: bool = False
    save_every: int | None = None
    keep: int = 2
    tracker: str | None = None


@dataclass(frozen=True, kw_only=True)
class MonitoringSettings:
    """Monitoring.

    Attributes:
        knn_every: epochs between k-NN accuracies of the held-out images.
        pictures: draw the loss curve, the embedding map and the gallery.
    """

    knn_every: int = 5
    pictures: bool = True


#: Settings that may change on resume, because they do not affect the results; or so that a run with a broken image can
#: continue.
FREE_TO_CHANGE = frozenset(
    {"output", "resume", "save_every", "keep", "tracker", "workers", "pictures", "broken_images"}
)
