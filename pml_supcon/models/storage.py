"""Encoders on disk, in the layout of timm's ``local-dir:`` folders: ``config.json`` and ``model.safetensors``."""

import json
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models import load_state_dict
from torch import Tensor, nn

from pml_supcon._files import check_file, save_tensors, write_atomic

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_RECORD = "build_record"
# The entries of timm's description with the source of weights; the folder becomes the source.
_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load", "label_offset")


@dataclass(frozen=True)
class BuildRecord:
    """The arguments that built an encoder, from which timm can rebuild it."""

    architecture: str
    arguments: dict[str, Any]
    image_size: int | None = None

    def attach(self, encoder: nn.Module) -> None:
        """Attach the record to the encoder; copies and pickles keep it."""
        encoder.__dict__[_RECORD] = self


def save_encoder(
    encoder: nn.Module,
    folder: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Path:
    """Write the encoder, without any head, as a folder that timm can open.

    ``timm.create_model(f"local-dir:{folder}", pretrained=True)`` loads it with equal outputs. A small stem needs this
    package: import ``pml_supcon.models`` first, which registers ``small_stem``. Rates of dropout and stochastic depth
    are kept. An interrupted save leaves no half-written file.

    Args:
        encoder: from ``create_encoder`` or ``load_encoder``, without a wrapper (data parallel, compiled).
        folder: created if missing; its two files are replaced.
        mean: channel means of the normalisation, length ``in_chans``, in [0, 1]. The config stores them with ``std``;
            ``timm.data`` creates the matching transform from it (as ``evaluation_transform``, without a cropped
            margin). None keeps timm's values for the model.
        std: channel deviations, length ``in_chans``, > 0; required with ``mean``.

    Returns:
        The folder.

    Raises:
        TypeError: If the encoder is not from this package or is wrapped.
        ValueError: If only one of ``mean`` and ``std`` is given, or their length is not ``in_chans``.
        OSError: If a file cannot be written; a file of an earlier save is unchanged.
    """
    record = vars(encoder).get(_RECORD)
    if not isinstance(record, BuildRecord):
        raise TypeError(
            "Expected `encoder` to come from `create_encoder` or `load_encoder`, without a wrapper (pass the `.module` "
            f"of a data-parallel model, the `._orig_mod` of a compiled one), but got {type(encoder).__name__}"
        )
    text = json.dumps(_config(encoder, record, mean, std), indent=2) + "\n"
    # Copies: safetensors rejects views and shared tensors.
    weights = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in encoder.state_dict().items()}
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save_tensors(target / _WEIGHTS, weights, {"format": "pt"})
    write_atomic(target / _CONFIG, text)
    return target


def load_encoder(folder: str | Path) -> nn.Module:
    """Load an encoder from a folder of ``save_encoder``: on the CPU, in float32 and in training mode.

    Raises:
        FileNotFoundError: If the folder or one of its two files is missing.
        ValueError: If a file is not what ``save_encoder`` wrote.
    """
    source = Path(folder)
    weights_file(source)
    if not (source / _CONFIG).is_file():
        raise FileNotFoundError(f"Expected {source} to hold {_CONFIG}, as `save_encoder` writes it, but it does not")
    try:
        config = json.loads((source / _CONFIG).read_text(encoding="utf-8"))
        encoder: nn.Module = timm.create_model(f"local-dir:{source}", pretrained=True)
        BuildRecord(config["architecture"], config["model_args"], config.get("image_size")).attach(encoder)
    except Exception as error:  # timm, torch and safetensors raise many kinds for a damaged file
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise ValueError(f"Expected {source} to be a folder of `save_encoder`, but it is not: {reason}") from error
    return encoder


def weights_file(path: Path) -> Path:
    """Return the weights file, ``path`` or ``model.safetensors`` in the folder ``path``; raise if it does not exist."""
    file = path / _WEIGHTS if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"Expected a weights file or a folder with {_WEIGHTS}, but there is no {file}")
    check_file(file)
    return file


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights in a file or a folder of ``save_encoder``, without unpickling any code.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it does not hold weights.
    """
    file = weights_file(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of a pickle's protocol
            stored: dict[str, Tensor] = load_state_dict(str(file))
        if not any(isinstance(value, Tensor) for value in stored.values()):
            raise ValueError("it holds no tensor")
    except Exception as error:  # torch, timm and safetensors raise many kinds for a foreign file
        reason = textwrap.shorten(str(error) or type(error).__name__, 300)
        raise ValueError(
            f"Expected {file} to hold weights (.safetensors, or a state dict in .pt or .pth), but cannot read them: "
            f"{reason}"
        ) from error
    return stored


def _config(
    encoder: nn.Module, record: BuildRecord, mean: Sequence[float] | None, std: Sequence[float] | None
) -> dict[str, Any]:
    model: Any = encoder
    in_chans = record.arguments["in_chans"]
    description = {key: value for key, value in model.pretrained_cfg.items() if key not in _SOURCES}
    # The saved weights have no classifier: with the same number here timm loads them strictly.
    description |= {"architecture": record.architecture, "num_classes": 0}
    size = list(description.get("input_size", (3, 224, 224)))
    height_width = size[1:] if record.image_size is None else [record.image_size] * 2
    description["input_size"] = [in_chans, *height_width]
    if record.image_size is not None:
        for key in ("test_input_size", "min_input_size", "pool_size", "test_pool_size"):
            description.pop(key, None)
    if (mean is None) != (std is None):
        raise ValueError("Expected both `mean` and `std` or neither, but got one of them")
    if mean is not None and std is not None:
        if not len(mean) == len(std) == in_chans:
            raise ValueError(
                f"Expected `mean` and `std` to have {in_chans} entries (`in_chans`), but got {len(mean)} and {len(std)}"
            )
        description.pop("test_crop_pct", None)
        description |= {"mean": list(mean), "std": list(std), "crop_pct": 1.0, "interpolation": "bilinear"}
    return {
        "architecture": record.architecture,
        "num_classes": 0,
        "num_features": model.num_features,
        "image_size": record.image_size,
        "model_args": record.arguments,
        "pretrained_cfg": description,
    }
