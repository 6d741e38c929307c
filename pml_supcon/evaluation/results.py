"""The results of an evaluation."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pml_supcon.data.label_kinds import LabelsAre
from pml_supcon.evaluation.sections import Sections

Pixels: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """The data of an evaluation: its name, its classes, the numbers of images, their size in pixels, the labels."""

    spec: str
    classes: list[str]
    train: int
    test: int
    image_size: int
    in_chans: int
    labels: LabelsAre = "classes"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        title: The heading of the report.
        encoder: The encoder, as the user named it.
        data: The data.
        about: Versions, device, seed and seconds, by name.
        notes: Sentences that the report must show.
        sections: The results of the sections.
        pictures: ``{"test": {row: pixels}, "train": {row: pixels}}`` with uint8 pixels ``(H, W)`` or ``(H, W, 3)``: the
            queries of the gallery and the points of the map (test), and the references of the gallery (train).
    """

    title: str
    encoder: str
    data: DataSummary
    about: dict[str, Any]
    notes: list[str]
    sections: Sections
    pictures: Mapping[str, Mapping[int, Pixels]] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the results as `evaluation.json` holds them: without the pictures."""
        content = {"title": self.title, "encoder": self.encoder, "data": asdict(self.data)}
        return content | {"about": self.about, "notes": self.notes, "sections": self.sections.to_json()}
