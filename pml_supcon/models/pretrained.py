"""The places where timm keeps downloaded weights."""

import os
from urllib.parse import urlparse

import torch
from huggingface_hub import try_to_load_from_cache
from timm.models import get_pretrained_cfg

_HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def has_local_weights(name: str) -> bool:
    """Return True if the pretrained weights of a timm model are in the cache of the hub or of torch."""
    config = get_pretrained_cfg(name)
    if config is None:
        return False
    if config.file or config.state_dict:
        return True
    files = (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES
    if config.hf_hub_id and any(isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in files):
        return True
    saved = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(urlparse(config.url or "").path))
    return not config.hf_hub_id and os.path.isfile(saved)
