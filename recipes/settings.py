"""The settings of a training run, typed: flags and YAML alike (`--help` lists them, `--print_config` shows them)."""

import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser

Method = Literal["supcon_out", "supcon_in", "simclr", "cross_entropy"]
Denominator = Literal["all", "one_positive", "negatives"]

DEFAULT_ENCODER = "resnet10t"
DEFAULT_ENCODER_ARGS = {"channels": [32, 64, 128, 256]}


@dataclass(frozen=True)
class TrainSettings:
    """What to train, on what, and how.

    Attributes:
        method: the loss of stage 1; `simclr` ignores the labels.
        data: `digits`, `torchvision:NAME`, `imagefolder:PATH` or `hf:PATH_OR_ID`.
        output: the run's folder; default: a new folder under `runs/`.
        seed: seed of weights, batches and augmentation.
        image_size: side in pixels; default: the images' own where small, else 224.
        max_train: use at most this many training images.
        max_test: use at most this many test images.
        workers: processes that load images; 0: none.
        views: views of each image in a batch.
        batch_size: images in the global batch, over all processes, each in `views` views.
        max_per_class: cap on the images of one class in a batch.
        samples_per_class: exactly this many images of each class present in a batch, instead.
        encoder: any timm model; default: a narrow resnet10t, with 32 to 256 channels.
        encoder_args: keyword arguments of the timm model.
        small_stem: 3x3 stem without max-pool; auto: where images are small.
        pretrained: start from timm's weights.
        head_dim: width of the projection.
        temperature: tau of the contrastive losses.
        denominator: the denominator of the contrastive losses.
        contrast_mode: which views are anchors.
        positives_cap: at most this many positives besides an anchor's own other views.
        scale_by_temperature: multiply the contrastive loss by tau.
        backend: which engine computes the contrastive loss.
        queue_size: contrast with this many past rows too (at least a batch of them); default: none.
        momentum: fill the queue by a momentum encoder, which keeps this share of itself a step; default: by the encoder
            that is trained.
        chunk_size: most images that pass the encoder at once on a process, all views of each; default: all of a batch.
        epochs: passes over the training images in stage 1.
        optimizer: any timm optimizer.
        learning_rate: peak learning rate.
        weight_decay: weight decay; not on biases and norms.
        warmup_epochs: epochs of linear warm-up before the cosine.
    """

    method: Method = "supcon_out"
    data: str = "digits"
    output: Path | None = None
    seed: int = 0
    image_size: int | None = None
    max_train: int | None = None
    max_test: int | None = None
    workers: int = 0
    views: int = 2
    batch_size: int = 256
    max_per_class: int | None = None
    samples_per_class: int | None = None
    encoder: str | None = None
    encoder_args: dict[str, Any] = field(default_factory=dict)
    small_stem: Literal["auto"] | bool = "auto"
    pretrained: bool = False
    head_dim: int = 128
    temperature: float = 0.1
    denominator: Denominator = "all"
    contrast_mode: Literal["all", "one"] = "all"
    positives_cap: int | None = None
    scale_by_temperature: bool = False
    backend: Literal["auto", "triton", "tiled", "reference"] = "auto"
    queue_size: int | None = None
    momentum: float | None = None
    chunk_size: int | None = None
    epochs: int = 25
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 1e-4
    warmup_epochs: float = 1.0

    def __post_init__(self) -> None:
        if self.encoder is None:
            object.__setattr__(self, "encoder", DEFAULT_ENCODER)
            object.__setattr__(self, "encoder_args", DEFAULT_ENCODER_ARGS | self.encoder_args)
        least = {"views": 1, "batch_size": 1, "epochs": 1, "head_dim": 1, "workers": 0, "seed": 0}
        least |= {"weight_decay": 0, "warmup_epochs": 0}
        if self.contrastive:
            least["batch_size"] = 2  # one image alone has no negatives
        if self.method == "simclr":
            least["views"] = 2  # the other views are its positives
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ValueError(
                    f"Expected --{name} to be at least {bound} for {self.method}, but got {getattr(self, name)}"
                )
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Expected --{name} to be > 0, but got {getattr(self, name)}")
        self._check_large_batches()
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"Expected --warmup_epochs to be at most --epochs={self.epochs}, but got {self.warmup_epochs}"
            )
        if self.positives_cap is not None and (self.positives_cap < 0 or self.positives_cap % self.views):
            raise ValueError(
                f"Expected --positives_cap to be a multiple >= 0 of the number of views, {self.views}, "
                f"but got {self.positives_cap}"
            )

    def _check_large_batches(self) -> None:
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"Expected --chunk_size to be at least 1, but got {self.chunk_size}")
        if self.queue_size is None and self.momentum is not None:
            raise ValueError("Expected --queue_size with --momentum, which fills a queue, but got none")
        if self.queue_size is None:
            return
        if not self.contrastive:
            raise ValueError("Expected no --queue_size with cross_entropy, which contrasts nothing")
        if self.queue_size < self.batch_size * self.views:
            raise ValueError(
                f"Expected --queue_size to be at least a batch, {self.batch_size} images in {self.views} views = "
                f"{self.batch_size * self.views} rows, but got {self.queue_size}"
            )
        if self.positives_cap is not None:
            raise ValueError("Expected no --positives_cap with --queue_size: it counts the samples of a batch")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(f"Expected --momentum to be in [0, 1), but got {self.momentum}")

    @property
    def contrastive(self) -> bool:
        """Whether stage 1 trains a projection head with a contrastive loss."""
        return self.method != "cross_entropy"


def parse_settings(arguments: Sequence[str] | None = None) -> TrainSettings:
    """Settings from the command line: flags, and `--config` for a YAML file of the same names.

    A flag may be spelt with dashes (`--max-train`) or underscores. An error is one line and exit status 2.
    """
    parser = _Parser(
        prog="train.py",
        allow_abbrev=False,
        description="Train an encoder, then score it: retrieval and a linear probe.",
    )
    parser.add_argument("--config", action="config", help="a YAML file of settings; later flags override it")
    parser.add_class_arguments(TrainSettings, None)
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = parser.parse_args([underscored(argument) for argument in arguments])
    try:
        return TrainSettings(**{setting.name: parsed[setting.name] for setting in fields(TrainSettings)})
    except ValueError as error:
        parser.error(str(error))


def underscored(argument: str) -> str:
    """`--max-train=5` as `--max_train=5`; values are left alone."""
    return re.sub(r"^--[^=]*", lambda flag: "--" + flag[0][2:].replace("-", "_"), argument)


class _Parser(ArgumentParser):
    """A parser whose errors are one line that names the nearest valid name."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        del ex
        print(f"{self.prog}: error: {' '.join(message.split())}{self.nearest(message)}", file=sys.stderr)
        sys.exit(2)

    def nearest(self, message: str) -> str:
        """What an unknown option or value was probably meant to be."""
        names = [setting.name for setting in fields(TrainSettings)]
        unknown = re.search(r"(?:unrecognized arguments: --|Option ')(\w+)", message)
        value = re.search(r"Literal\[(.*)\]\. Got value: (\S+)", message)
        if unknown:
            close = difflib.get_close_matches(unknown[1], names, n=1)
        elif value:
            close = difflib.get_close_matches(value[2], re.findall(r"'(\w+)'", value[1]), n=1)
        else:
            close = []
        return f"; did you mean {close[0]!r}?" if close else ""
