"""Projection and prediction heads on disk: one safetensors file with the head's layout in its metadata."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pml_supcon._checks import check_type
from pml_supcon._files import save_tensors
from pml_supcon.models.heads import PredictionHead, ProjectionHead

_SUFFIX = ".safetensors"
#: The name of the layout in the metadata, which tells the class.
_PROJECTION, _PREDICTION = "projection_head", "prediction_head"


def save_head(head: ProjectionHead, file: str | Path) -> Path:
    """Write a projection or prediction head; an interrupted save leaves no half-written file.

    Args:
        head: any ``ProjectionHead`` or ``PredictionHead``, on any device and of any dtypes, which are kept.
        file: the path, with the suffix ``.safetensors``; its folder is created if missing.

    Returns:
        The path.

    Raises:
        TypeError: If the head is not a ``ProjectionHead``. (A ``SyncBatchNorm`` in it is written as a ``BatchNorm1d``.)
        ValueError: If the path has another suffix.
        OSError: If the file cannot be written; a file of an earlier save is unchanged.

    Examples:
        >>> import tempfile
        >>> file = save_head(ProjectionHead(8, 4, batch_norm=True), Path(tempfile.mkdtemp()) / "head.safetensors")
        >>> [type(layer).__name__ for layer in load_head(file)]
        ['Linear', 'BatchNorm1d', 'ReLU', 'Linear']
    """
    check_type("head", head, ProjectionHead, "a ProjectionHead")
    target = _check_suffix(file)
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    layout = {
        "in_features": linear[0].in_features,
        "out_features": linear[-1].out_features,
        "hidden_features": linear[0].out_features if len(linear) > 1 else None,
        "num_layers": len(linear),
        "batch_norm": len(linear) > 1 and linear[0].bias is None,
    }
    weights = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in head.state_dict().items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    name = _PREDICTION if isinstance(head, PredictionHead) else _PROJECTION
    save_tensors(target, weights, {"format": "pt", name: json.dumps(layout)})
    return target


def load_head(file: str | Path) -> ProjectionHead:
    """Load a head from a file of ``save_head``: on the CPU, in the saved dtypes and in training mode.

    Args:
        file: the path, with the suffix ``.safetensors``.

    Returns:
        The head, of the saved class. Only the file's tensors take memory, whatever the metadata says; no random number
        is drawn.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not a file of ``save_head``, or the path has another suffix.
    """
    path = _check_suffix(file)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file of `save_head`, but there is no {path}")
    try:
        with safe_open(path, "pt") as opened:
            weights = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - no mapping
            metadata = opened.metadata() or {}
            kind = _PREDICTION if _PREDICTION in metadata else _PROJECTION
            head = _build_on_meta(kind, metadata[kind], most_layers=len(weights))
        wanted = head.state_dict()
        head.load_state_dict(weights, assign=True)  # raises where names or shapes differ
        for name, value in weights.items():
            if value.is_floating_point() != wanted[name].is_floating_point():
                raise ValueError(f"{name} is {value.dtype}")
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"Expected {path} to be a file of `save_head`, but it is not: {error}") from error
    return head


def _build_on_meta(kind: str, metadata: str, *, most_layers: int) -> ProjectionHead:
    """Build the head of the metadata on the meta device, without memory."""
    layout: Any = json.loads(metadata)
    if not isinstance(layout, dict):
        raise ValueError(f"its metadata is not a mapping but {layout!r}")
    if not 1 <= layout["num_layers"] <= most_layers:  # each layer has at least a weight
        raise ValueError(f"its metadata says {layout['num_layers']} layers, but it has {most_layers} tensors")
    with torch.device("meta"):
        if kind == _PREDICTION:  # a file with other layers differs in names or shapes
            hidden = layout["hidden_features"]
            return PredictionHead(layout["in_features"], hidden_features=hidden, batch_norm=layout["batch_norm"])
        return ProjectionHead(layout.pop("in_features"), layout.pop("out_features"), **layout)


def _check_suffix(file: str | Path) -> Path:
    check_type("file", file, (str, os.PathLike), "a path")
    path = Path(file)
    if path.suffix != _SUFFIX:
        raise ValueError(f"Expected argument `file` to have the suffix {_SUFFIX}, but got {str(path)!r}")
    return path
