"""A cache of features on disk, keyed by all that determines them."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pml_supcon._files import check_file, save_tensors

logger = logging.getLogger(__name__)


class FeatureCache:
    """A folder of files with the features of one set of images each.

    The name of a file is a digest of its key. The file holds the key and a digest of the features. A file that is
    truncated, changed or foreign causes a warning, and its features are computed again.

    Args:
        path: The folder, which is created when the first file is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def file_of(self, key: Mapping[str, object]) -> Path:
        """Return the path of the features of a key."""
        return self.path / f"{hashlib.sha256(_text(key).encode()).hexdigest()[:32]}.safetensors"

    def read(self, key: Mapping[str, object]) -> Tensor | None:
        """Return the features ``(N, width)`` of a key, or None if there is no valid file."""
        file = self.file_of(key)
        if not file.exists():
            return None
        try:
            check_file(file)
            with safe_open(file, "pt") as opened:
                about = opened.metadata() or {}
                features: Tensor = opened.get_tensor("features")
        except (SafetensorError, OSError, ValueError) as error:
            logger.warning("Cannot read %s (%s): its features are computed again", file, error)
            return None
        if about.get("key") != _text(key) or about.get("digest") != _digest(features):
            logger.warning("%s has changed since it was written: its features are computed again", file)
            return None
        return features

    def write(self, key: Mapping[str, object], features: Tensor) -> None:
        """Write the features of a key atomically. If the disk is full, warn and continue without caching."""
        about = {"key": _text(key), "digest": _digest(features)}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            save_tensors(self.file_of(key), {"features": features.contiguous()}, about)
        except OSError as error:
            logger.warning("Cannot cache the features in %s (%s)", self.path, error)


def _text(key: Mapping[str, object]) -> str:
    return json.dumps(key, sort_keys=True)


def _digest(features: Tensor) -> str:
    shape = f"{tuple(features.shape)} {features.dtype}"
    content = features.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return hashlib.sha256(shape.encode() + hashlib.sha256(content).digest()).hexdigest()
