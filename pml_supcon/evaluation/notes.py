"""Notes of an evaluation: sentences that the report shows at its top."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from pml_supcon.evaluation.context import EvaluationContext


@contextmanager
def warnings_as_notes(context: EvaluationContext, prefix: str) -> Iterator[None]:
    """Add the warnings of a block to the notes, each once, instead of showing them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        context.note(f"{prefix}: {message}")


def note_missing_classes(
    context: EvaluationContext, train_labels: Tensor, test_labels: Tensor, consequence: str
) -> None:
    """Note the classes that test has and train lacks, with the number of their test images."""
    counts = test_labels.bincount(minlength=context.data.num_classes)
    missing = set(test_labels.tolist()) - set(train_labels.tolist())
    if missing:
        names = ", ".join(f"{context.data.class_names[label]} ({int(counts[label])})" for label in sorted(missing))
        context.note(f"No training image has a class of these test images: {names}; {consequence}.")
