"""What a section has to tell beside its figures."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from pml_supcon.evaluation.context import Subject


@contextmanager
def telling_warnings(subject: "Subject", what: str) -> Iterator[None]:
    """Tell the warnings of a block, each once, instead of showing them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        subject.tell(f"{what}: {message}")


def tell_missing_classes(subject: "Subject", learnt: Tensor, wanted: Tensor, said: str) -> None:
    """Tell of classes that test has and train lacks, with the number of their test images."""
    counts = wanted.bincount(minlength=subject.data.num_classes)
    missing = set(wanted.tolist()) - set(learnt.tolist())
    if missing:
        names = ", ".join(f"{subject.data.class_names[label]} ({int(counts[label])})" for label in sorted(missing))
        subject.tell(f"No training image has a class of these test images: {names}; {said}.")
