"""Load an encoder for evaluation: from a run, from a folder, or from timm. No file is ever unpickled."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import is_model, split_model_name_tag
from torch import Tensor, nn

from pml_supcon._files import check_file, kind_of
from pml_supcon.data.images import ImageData
from pml_supcon.models import create_encoder, load_encoder, load_head
from pml_supcon.models.storage import weights_file
from pml_supcon.training.config.yaml_files import read_yaml
from pml_supcon.training.digests import CLASSIFIER, CONFIG, ENCODER, HEAD, check_encoder_folder, check_finished
from pml_supcon.training.run import announce_download

RUN_DATA = ("data", "image_size", "max_train", "max_test")  # settings of a run that determine its images


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder with its head, its input and its run.

    Attributes:
        name: The encoder as the user named it.
        model: Maps images ``(N, in_chans, H, W)`` to features ``(N, width)``; in evaluation mode, without gradients.
        head: The projection head of its training, or None.
        classifier: The linear classifier of its run, ``weight`` ``(C, width)`` and ``bias`` ``(C,)``, or None.
        in_chans: The channels of its images.
        image_size: The side of its images in pixels, or None if it takes any.
        mean: The mean of the channels, for normalisation.
        std: The standard deviation of the channels.
        run: The settings of its run (`RUN_DATA`, ``labels``, ``method``), or an empty dict.
        digest: A digest of its weights and its layout.
    """

    name: str
    model: nn.Module
    head: nn.Module | None
    classifier: dict[str, Tensor] | None
    in_chans: int
    image_size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    run: dict[str, Any]
    digest: str

    def to(self, device: torch.device) -> "LoadedEncoder":
        """Move the encoder and its head to a device; returns itself."""
        self.model.to(device)
        if self.head is not None:
            self.head.to(device)
        return self

    def adapt_data(self, data: ImageData) -> ImageData:
        """Return the data with the normalisation of this encoder.

        Raises:
            ValueError: If the images have another number of channels, or a size that the encoder cannot take.
        """
        if data.in_chans != self.in_chans:
            raise ValueError(
                f"Expected images with {self.in_chans} channels for {self.name}, but the images of {data.spec} have "
                f"{data.in_chans}"
            )
        blank = torch.zeros(1, self.in_chans, data.image_size, data.image_size)
        try:
            with torch.no_grad():
                self.model(blank.to(next(self.model.parameters()).device))
        except Exception as error:  # each model has its own errors for a size
            raise ValueError(
                f"Expected --image_size to be a size that {self.name} takes, but got {data.image_size}: {error}"
            ) from error
        return replace(data, mean=self.mean, std=self.std)


def load_trained_encoder(name: str) -> LoadedEncoder:
    """Load an encoder with frozen weights, in evaluation mode.

    Args:
        name: The folder of a run, a folder written by `save_encoder` or by timm (`config.json` and
            `model.safetensors`), or the name of a timm model with pretrained weights, which timm downloads on first
            use.

    Raises:
        FileNotFoundError: If there is no such folder, or the run is not finished.
        ValueError: If the folder holds no encoder, or a file of it was damaged after it was written.
        OSError: If pretrained weights cannot be downloaded.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"Expected a run, an encoder's folder or the name of a timm model, but {path} is {kind_of(path)} (convert "
            "a checkpoint of another program with `create_encoder(..., checkpoint=...)` and `save_encoder`)"
        )
    if not path.is_dir():
        if "/" in name or not is_model(split_model_name_tag(name)[0]):
            raise FileNotFoundError(
                f"Expected a run, an encoder's folder or the name of a timm model, but there is no {name}"
            )
        announce_download(name)
        return _describe(name, create_encoder(name, pretrained=True, small_stem=False))
    run: dict[str, Any] = {}
    folder, head, classifier = path, None, None
    if (path / CONFIG).exists():
        run = _settings_of(path / CONFIG)
        check_finished(path)
        folder = path / ENCODER
        head = load_head(path / HEAD) if (path / HEAD).exists() else None
        classifier = _load_classifier(path / CLASSIFIER) if (path / CLASSIFIER).exists() else None
    else:
        check_encoder_folder(path)
    try:
        model = _load(folder)
    except FileNotFoundError:
        raise
    except Exception as error:  # timm and torch raise many kinds for a foreign description or weights
        raise ValueError(f"Expected {folder} to hold an encoder of this package or of timm, but: {error}") from error
    return _describe(name, model, head, classifier, run)


def _load_classifier(file: Path) -> dict[str, Tensor]:
    check_file(file)
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"Expected {file} to hold a classifier, but it does not: {error}") from error


def _load(folder: Path) -> nn.Module:
    """Load a folder of `save_encoder`, or one of timm without its classifier."""
    weights_file(folder)
    config = folder / "config.json"
    if not config.is_file() or "image_size" in json.loads(config.read_text(encoding="utf-8")):
        return load_encoder(folder)
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    return model


def _settings_of(config: Path) -> dict[str, Any]:
    """Read the data and the method of a run from its `config.yaml`."""
    try:
        read = read_yaml(config)
        # runs of earlier versions have classes, and no setting for them
        return {name: read[name] for name in (*RUN_DATA, "method")} | {"labels": read.get("labels", "classes")}
    except (ValueError, KeyError) as error:
        raise ValueError(f"Expected {config} to be the settings of a run, but it is not: {error}") from error


def _describe(name: str, model: Any, head: Any = None, classifier: Any = None, run: Any = None) -> LoadedEncoder:
    config = timm.data.resolve_model_data_config(model)
    in_chans, side, _ = config["input_size"]
    digest = hashlib.sha256(repr(sorted((k, str(v)) for k, v in config.items())).encode())
    digest.update(repr(model).encode())
    for key, value in model.state_dict().items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    head = None if head is None else head.eval().requires_grad_(False)
    model, mean, std = model.eval().requires_grad_(False), tuple(config["mean"]), tuple(config["std"])
    return LoadedEncoder(name, model, head, classifier, in_chans, side, mean, std, run or {}, digest.hexdigest())
