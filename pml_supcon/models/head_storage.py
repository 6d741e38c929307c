"""Projection heads on disk: one safetensors file, with the head's layout in its metadata."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pml_supcon.models.heads import ProjectionHead
from pml_supcon.models.storage import replace_file

_LAYOUT = "projection_head"


def save_head(head: ProjectionHead, file: str | Path) -> Path:
    """Write a projection head; an interrupted save leaves no half-written file.

    Args:
        head: any `ProjectionHead`, on any device.
        file: the path, of the suffix `.safetensors`; its folder is created where needed.

    Returns:
        The path.

    Raises:
        TypeError: where the head is not a `ProjectionHead` (a `SyncBatchNorm` in it is written as what it stands for).

    Example:
        >>> import tempfile
        >>> file = save_head(ProjectionHead(8, 4, batch_norm=True), Path(tempfile.mkdtemp()) / "head.safetensors")
        >>> [type(layer).__name__ for layer in load_head(file)]
        ['Linear', 'BatchNorm1d', 'ReLU', 'Linear']
    """
    if not isinstance(head, ProjectionHead):
        raise TypeError(f"Expected argument `head` to be a ProjectionHead, but got {type(head).__name__}")
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    layout = {
        "in_features": linear[0].in_features,
        "out_features": linear[-1].out_features,
        "hidden_features": linear[0].out_features if len(linear) > 1 else None,
        "num_layers": len(linear),
        "batch_norm": len(linear) > 1 and linear[0].bias is None,
    }
    weights = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in head.state_dict().items()}
    target = Path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", _LAYOUT: json.dumps(layout)}
    replace_file(target, lambda path: save_file(weights, path, metadata=metadata))
    return target


def load_head(file: str | Path) -> ProjectionHead:
    """Open a file of `save_head`; the head is on the CPU and in training mode.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is not one of `save_head`.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file of `save_head`, but there is no {path}")
    try:
        with safe_open(path, "pt") as opened:
            layout: dict[str, Any] = json.loads((opened.metadata() or {})[_LAYOUT])
            head = ProjectionHead(layout.pop("in_features"), layout.pop("out_features"), **layout)
            head.load_state_dict({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118 - no mapping
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"Expected {path} to be a file of `save_head`, but it is not: {error}") from error
    return head
