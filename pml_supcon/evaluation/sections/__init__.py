"""The sections of an evaluation, in their order, and how they are run."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pml_supcon._extras import require_imagecorruptions
from pml_supcon.evaluation.context import EvaluationContext, FeaturesError
from pml_supcon.evaluation.sections.calibration import calibration
from pml_supcon.evaluation.sections.corruption import corruption
from pml_supcon.evaluation.sections.hard_mining import hard_mining
from pml_supcon.evaluation.sections.linear_probe import linear_probe
from pml_supcon.evaluation.sections.projection_head import projection_head
from pml_supcon.evaluation.sections.retrieval import gallery, map_of_embeddings, retrieval
from pml_supcon.evaluation.sections.transfer import transfer

SECTIONS: dict[str, Callable[[EvaluationContext], Any]] = {
    "retrieval": retrieval,
    "linear_probe": linear_probe,
    "calibration": calibration,
    "corruption": corruption,
    "projection_head": projection_head,
    "hard_mining": hard_mining,
    "transfer": transfer,
    "gallery": gallery,
    "map": map_of_embeddings,
}
#: Those that fit a classifier to the training images' classes.
CLASSIFIERS = frozenset({"linear_probe", "calibration", "corruption", "projection_head"})


def choose_sections(context: EvaluationContext) -> list[str]:
    """Those that were asked for, else all that apply; in the report's order."""
    asked: set[str] = set(context.settings.sections)
    left_out: set[str] = set() if context.settings.transfer else {"transfer"}
    if not torch.isin(context.labels("test"), context.labels("train")).any():
        left_out |= CLASSIFIERS
        if asked & CLASSIFIERS:
            raise ValueError(
                f"Expected test classes among those of train for --sections {','.join(sorted(asked & CLASSIFIERS))}, "
                "but none is: only retrieval, gallery, map and hard_mining apply"
            )
    if "corruption" in asked - left_out:
        require_imagecorruptions()
    elif not asked:
        try:
            require_imagecorruptions()
        except ImportError as error:
            context.note(f"No corruptions: {error}")
            left_out.add("corruption")
    return [name for name in SECTIONS if name not in left_out and (name in asked or not asked)]


def run_sections(context: EvaluationContext, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """The results of sections by name, None on all but the main process, and the seconds that each took.

    A section that no setting names and that the data cannot support (too few images, say) is left out, which is told.
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
        except ValueError as error:
            if isinstance(error, FeaturesError) or name in named or context.accelerator.num_processes > 1:
                raise  # several processes: others have gone on to what this one would miss
            results[name] = None
            context.note(f"The section {name} is left out: {error}")
        seconds[f"seconds/{name}"] = round(time.perf_counter() - started, 2)
    return results, seconds
