"""The corruptions with the strengths of ImageNet-C, for images of about 224 pixels: the library's functions, seeded."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pml_supcon._extras import require_imagecorruptions
from pml_supcon.corruptions._draws import Words

_TAKE_A_SEED = ("glass_blur", "impulse_noise")  # these have a generator of their own


def corrupt(pixels: npt.NDArray[np.uint8], name: str, severity: int, words: Words) -> npt.NDArray[Any]:
    """Corrupt one image with the library; call it inside ``seeded_numpy``.

    Args:
        pixels: ``(H, W, 3)``; the noises take ``(H, W)`` too.
        name: one of ``CORRUPTIONS``.
        severity: 1 to 5.
        words: from ``draw_words``.

    Returns:
        The same shape, in [0, 255], not yet truncated to whole numbers.
    """
    function = require_imagecorruptions().corruption_dict[name]
    options = {"seed": int(words[0])} if name in _TAKE_A_SEED else {}
    return np.asarray(function(Image.fromarray(pixels), severity, **options))
