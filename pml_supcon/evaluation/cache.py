"""Features on disk, under a key of all that they follow from."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pml_supcon._files import write_atomic

logger = logging.getLogger(__name__)


class FeatureCache:
    """A folder of files, each with the features of one set of images.

    A file is named after a digest of its key; the key and a digest of the features stand in it, so that a file that was
    cut short, changed or is of another program is told and made again.

    Args:
        path: the folder, made when the first file is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def file_of(self, key: Mapping[str, object]) -> Path:
        """Where the features of a key are, or would be."""
        return self.path / f"{hashlib.sha256(_text(key).encode()).hexdigest()[:32]}.safetensors"

    def read(self, key: Mapping[str, object]) -> Tensor | None:
        """The features `(N, width)` of a key; None where there are none that are whole."""
        file = self.file_of(key)
        if not file.exists():
            return None
        try:
            with safe_open(file, "pt") as opened:
                about = opened.metadata() or {}
                features: Tensor = opened.get_tensor("features")
        except (SafetensorError, OSError) as error:
            logger.warning("%s cannot be read (%s): its features are computed again.", file, error)
            return None
        if about.get("key") != _text(key) or about.get("digest") != _digest(features):
            logger.warning("%s is not what was written there: its features are computed again.", file)
            return None
        return features

    def write(self, key: Mapping[str, object], features: Tensor) -> None:
        """Keep the features of a key; a file is there as a whole or not at all. A full disk is told, and no error."""
        about = {"key": _text(key), "digest": _digest(features)}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(
                self.file_of(key), lambda path: save_file({"features": features.contiguous()}, path, metadata=about)
            )
        except (OSError, SafetensorError) as error:
            logger.warning("the features could not be kept in %s (%s).", self.path, error)


def _text(key: Mapping[str, object]) -> str:
    return json.dumps(key, sort_keys=True)


def _digest(features: Tensor) -> str:
    shape = f"{tuple(features.shape)} {features.dtype}"
    content = features.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return hashlib.sha256(shape.encode() + hashlib.sha256(content).digest()).hexdigest()
