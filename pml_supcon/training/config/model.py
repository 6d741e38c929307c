"""What is trained: the encoder and the head over it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
