"""Broken images of a data set: found by decoding every image, listed in a file, replaced by others of their class."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pml_supcon._console import note
from pml_supcon._files import write_atomic
from pml_supcon.data.images import BrokenImageError
from pml_supcon.data.label_kinds import classes_of
from pml_supcon.data.load import OpenedData

BROKEN = "broken_images.txt"


@contextmanager
def broken_images_listed(open_again: Callable[[], Sequence[OpenedData]], folder: Path, again: str) -> Iterator[None]:
    """List all broken images if the block meets one, and raise one error for all.

    Args:
        open_again: Opens the data sets of the block; their images are decoded once.
        folder: The folder of the list, ``broken_images.txt``; created if it is missing.
        again: The way to continue, as the end of the error.

    Raises:
        BrokenImageError: With the number of broken images, the first of them, and the list.
    """
    try:
        yield
    except BrokenImageError as error:
        opened = open_again()
        messages = [message for each in opened for part in each.find_broken() for message in part.values()]
        if not messages:  # a fault that has passed, of a network or of a file that was being written
            raise BrokenImageError(
                f"an image could not be read, but all of them can be now; {again} ({error})"
            ) from error
        number = sum(len(each.train) + len(each.test) for each in opened)
        raise BrokenImageError(
            f"{len(messages)} of {number} images cannot be read, listed in {_write(messages, folder)} (the first: "
            f"{messages[0]}); repair them, or read the next image of the class in place of each with --broken_images "
            f"replace; then {again}"
        ) from error


def replace_broken(opened: OpenedData, folder: Path, *, write: bool) -> OpenedData:
    """Replace each broken image by the next readable one of its class, in the same order with the same labels.

    Args:
        opened: The data set; every image is decoded once.
        folder: The folder of the list, ``broken_images.txt``.
        write: Write the list and a note, on one of several processes.

    Raises:
        ValueError: If all images of a class are broken, or the labels hold no classes.
    """
    if classes_of(opened.train.labels) is None:
        raise ValueError(
            f"Expected no --broken_images replace with --labels {opened.source.labels_are}: it reads the next image of "
            "the class, and these hold no classes"
        )
    broken = opened.find_broken()
    messages = [message for part in broken for message in part.values()]
    if messages and write:
        file = _write(messages, folder)
        note(f"{len(messages)} images of {opened.spec} cannot be read (see {file}): the next of the class replace them")
    return opened.with_replaced(broken)


def _write(messages: Sequence[str], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{message}\n" for message in messages)
    write_atomic(folder / BROKEN, text.encode(errors="backslashreplace"))
    return folder / BROKEN
