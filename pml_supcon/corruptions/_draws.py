"""Where the draws of a corruption come from: words that follow from its options and the image's place alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint32]

_ONE_AT_A_TIME = RLock()


def _renew_lock() -> None:
    """After a fork: the lock, and the threads that waited for it, belong to the parent."""
    global _ONE_AT_A_TIME
    _ONE_AT_A_TIME = RLock()


if hasattr(os, "register_at_fork"):
    # A fork waits for the thread that corrupts: in the child it would never put numpy's generator back, nor let go of
    # numpy's own lock on it. The names are looked up at the fork, for a child that forks again.
    os.register_at_fork(
        before=lambda: _ONE_AT_A_TIME.acquire(),
        after_in_parent=lambda: _ONE_AT_A_TIME.release(),
        after_in_child=_renew_lock,
    )


def draw_words(seed: int, place: int, severity: int, index: int) -> Words:
    """Four words of 32 bits that seed the draws of one image; `place` is that of the corruption's name."""
    return np.random.SeedSequence((seed, place, severity, index)).generate_state(4).astype(np.uint32)


@contextmanager
def seeded_numpy(words: Words) -> Iterator[None]:
    """Seed numpy's global generator, which the library draws from, and put its state back afterwards.

    Threads take turns in here. A thread that draws from numpy's global generator elsewhere at the same time would
    disturb the draws, and see its own disturbed: nothing can keep it out.
    """
    with _ONE_AT_A_TIME:
        before = np.random.get_state(legacy=False)
        try:
            np.random.seed(words)
            yield
        finally:
            np.random.set_state(before)
