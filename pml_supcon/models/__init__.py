"""Encoders (any timm model as a feature extractor), projection and prediction heads, and their storage on disk.

Importing this package registers the architecture ``small_stem`` with timm, so that a folder written by
``save_encoder`` loads through ``timm.create_model("local-dir:FOLDER", pretrained=True)``.
"""

from pml_supcon.models.chunked import ChunkedEncoder
from pml_supcon.models.encoders import check_encoder_name, create_encoder, feature_width
from pml_supcon.models.head_storage import load_head, save_head
from pml_supcon.models.heads import PredictionHead, ProjectionHead
from pml_supcon.models.momentum import MomentumEncoder
from pml_supcon.models.stems import shrink_stem
from pml_supcon.models.storage import load_encoder, save_encoder

__all__ = [  # noqa: RUF022 - flow order
    "check_encoder_name",
    "create_encoder",
    "feature_width",
    "shrink_stem",
    "ProjectionHead",
    "PredictionHead",
    "ChunkedEncoder",
    "MomentumEncoder",
    "save_encoder",
    "load_encoder",
    "save_head",
    "load_head",
]
