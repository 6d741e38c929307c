"""Images from the two photographs in scikit-learn."""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images


@lru_cache
def _photographs():
    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


def colour_batch(count):
    """Return up to 48 different parts of the photographs, (count, 3, 32, 32)."""
    parts = []
    for photograph in _photographs():
        small = np.asarray(photograph.resize((192, 128), Image.Resampling.BOX))
        parts += [small[y : y + 32, x : x + 32] for y in range(0, 128, 32) for x in range(0, 192, 32)]
    mixed = parts[::5] + [part for index, part in enumerate(parts) if index % 5]
    return torch.from_numpy(np.stack(mixed[:count])).permute(0, 3, 1, 2)


def large_batch():
    """Return the middles of both photographs, (2, 3, 224, 224)."""
    middles = [photograph.resize((336, 224)).crop((56, 0, 280, 224)) for photograph in _photographs()]
    return torch.from_numpy(np.stack([np.asarray(middle) for middle in middles])).permute(0, 3, 1, 2)
