"""The sections of an evaluation: their results, their choice and their run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pml_supcon._extras import require_imagecorruptions
from pml_supcon.data.images import BrokenImageError
from pml_supcon.data.label_kinds import WITH_CLASSES, has_new_classes
from pml_supcon.evaluation.context import EvaluationContext, FeaturesError
from pml_supcon.evaluation.sections.calibration import CalibrationSection, calibration
from pml_supcon.evaluation.sections.corruption import CorruptionSection, baseline_of, corruption
from pml_supcon.evaluation.sections.embedding_map import MapSection, map_embeddings
from pml_supcon.evaluation.sections.gallery import GalleryQuery, gallery
from pml_supcon.evaluation.sections.hard_mining import HardMiningSection, hard_mining
from pml_supcon.evaluation.sections.linear_probe import LinearProbeSection, linear_probe
from pml_supcon.evaluation.sections.projection_head import ProjectionHeadSection, projection_head
from pml_supcon.evaluation.sections.retrieval import RetrievalSection, retrieval
from pml_supcon.evaluation.sections.transfer import TransferResult, transfer

#: The sections that fit a classifier to the classes of the training images.
CLASSIFIERS = frozenset({"linear_probe", "calibration", "corruption", "projection_head"})
#: The sections for labels that hold no classes.
ANY_LABELS = frozenset({"linear_probe", "map", "transfer"})
#: The sections of pictures. The evaluation continues if one of them fails.
PICTURES = frozenset({"gallery", "map"})


@dataclass(frozen=True, kw_only=True)
class Sections:
    """The results of the sections, in the order in which they run; None: the section was not evaluated.

    The metadata ``run`` of a field is the function that computes it. All processes call it; only the main one gets a
    result.
    """

    retrieval: RetrievalSection | None = field(default=None, metadata={"run": retrieval})
    linear_probe: LinearProbeSection | None = field(default=None, metadata={"run": linear_probe})
    calibration: CalibrationSection | None = field(default=None, metadata={"run": calibration})
    corruption: CorruptionSection | None = field(default=None, metadata={"run": corruption})
    projection_head: ProjectionHeadSection | None = field(default=None, metadata={"run": projection_head})
    hard_mining: HardMiningSection | None = field(default=None, metadata={"run": hard_mining})
    transfer: list[TransferResult] | None = field(default=None, metadata={"run": transfer})
    gallery: list[GalleryQuery] | None = field(default=None, metadata={"run": gallery})
    map: MapSection | None = field(default=None, metadata={"run": map_embeddings})

    def to_json(self) -> dict[str, Any]:
        """Return the results as `evaluation.json` holds them, without those that were not evaluated."""
        content = {name: section for name, section in asdict(self).items() if section is not None}
        if self.linear_probe is not None and self.linear_probe.augmented is None:
            del content["linear_probe"]["augmented"]
        if self.map is not None and self.map.names is None:
            del content["map"]["names"]
        return content


SECTIONS: dict[str, Callable[[EvaluationContext], Any]] = {
    section.name: section.metadata["run"] for section in fields(Sections)
}


def choose_sections(context: EvaluationContext) -> list[str]:
    """Return the names of the sections that the settings ask for, by default of all that apply, in their order.

    Raises:
        ValueError: If the settings ask for a section that needs classes and the labels hold none, for a classifier and
            train and test share no class, or for a baseline of the corruptions that is unsuitable.
        ImportError: If the settings ask for corruptions and their package is not installed.
    """
    requested: set[str] = set(context.settings.sections)
    left_out: set[str] = set() if context.settings.transfer else {"transfer"}
    kind = context.data.labels_are
    if kind not in WITH_CLASSES:
        needing = [name for name in SECTIONS if name not in ANY_LABELS]
        unfit = [name for name in needing if name in requested]
        flags = ["--sections " + ",".join(unfit)] if unfit else []
        if flags := flags or (["--probe_optimizer"] if context.settings.probe_optimizer is not None else []):
            raise ValueError(
                f"Expected images with classes for {flags[0]}, but the labels are {kind}: "
                f"{', '.join(sorted(ANY_LABELS))} apply"
            )
        left_out |= set(needing)
        context.note(f"The labels are {kind}: sections that need classes are left out ({', '.join(needing)}).")
    elif has_new_classes(context.labels("train"), context.labels("test")):
        left_out |= CLASSIFIERS
        if requested & CLASSIFIERS:
            raise ValueError(
                f"Expected test classes that train has for --sections {','.join(sorted(requested & CLASSIFIERS))}, but "
                "train and test share none: only retrieval, gallery, map and hard_mining apply"
            )
    if "corruption" in requested - left_out:
        require_imagecorruptions()
    elif not requested and "corruption" not in left_out:
        try:
            require_imagecorruptions()
        except ImportError as error:
            context.note(f"No corruptions: {error}")
            left_out.add("corruption")
    chosen = [name for name in SECTIONS if name not in left_out and (name in requested or not requested)]
    if "corruption" in chosen:
        baseline_of(context)  # an error now, not after the sections before it
    return chosen


def run_sections(context: EvaluationContext, names: Sequence[str]) -> tuple[Sections, dict[str, float]]:
    """Run sections, and return their results (on the main process) and the seconds of each.

    A section that the data does not support (for example too few images) is left out with a note, unless a setting
    names it. A section of pictures that fails for any reason is left out with a note.
    """
    settings = context.settings
    named = {*settings.sections, "transfer"}
    named |= {"retrieval"} if settings.index != "exact" else set()
    named |= {"corruption"} if settings.corruption_baseline is not None else set()
    results, seconds = {}, {}
    for name in names:
        started = time.perf_counter()
        try:
            results[name] = SECTIONS[name](context)
        except Exception as error:
            if isinstance(error, FeaturesError | BrokenImageError):  # of the features, which other sections need too
                raise
            # With several processes the others may wait in a collective operation of the section, so this one cannot
            # go on without them. The sections of pictures have none after their features.
            several = context.accelerator.num_processes > 1
            if name not in PICTURES and (not isinstance(error, ValueError) or name in named or several):
                raise
            context.note(f"The section {name} is left out: {error}")
        seconds[f"seconds/{name}"] = round(time.perf_counter() - started, 2)
    return Sections(**results), seconds
