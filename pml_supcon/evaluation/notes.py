"""What a section has to tell beside its figures."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from pml_supcon.evaluation.context import EvaluationContext


@contextmanager
def warnings_as_notes(context: EvaluationContext, what: str) -> Iterator[None]:
    """Tell the warnings of a block, each once, instead of showing them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        context.note(f"{what}: {message}")


def note_missing_classes(context: EvaluationContext, learnt: Tensor, wanted: Tensor, said: str) -> None:
    """Tell of classes that test has and train lacks, with the number of their test images."""
    counts = wanted.bincount(minlength=context.data.num_classes)
    missing = set(wanted.tolist()) - set(learnt.tolist())
    if missing:
        names = ", ".join(f"{context.data.class_names[label]} ({int(counts[label])})" for label in sorted(missing))
        context.note(f"No training image has a class of these test images: {names}; {said}.")
