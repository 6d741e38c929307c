"""Deterministic seeds: one per (seed, corruption, severity, image index).

The imagecorruptions library draws from numpy's global generator, so that a generator per process cannot replace it:
the global one is seeded for each image and restored, under a lock that survives a fork.
"""

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
    """Create a new lock in the child of a fork: the threads that wait for the old one exist only in the parent."""
    global _ONE_AT_A_TIME
    _ONE_AT_A_TIME = RLock()


if hasattr(os, "register_at_fork"):
    # A fork waits for a thread inside `seeded_numpy`: that thread does not exist in the child, which would inherit a
    # seeded generator and a held lock. Lambdas look the lock up at the fork, for a child that forks again.
    os.register_at_fork(
        before=lambda: _ONE_AT_A_TIME.acquire(),
        after_in_parent=lambda: _ONE_AT_A_TIME.release(),
        after_in_child=_renew_lock,
    )


def draw_words(seed: int, place: int, severity: int, index: int) -> Words:
    """Return four 32-bit words that seed the draws of one image; ``place`` is the index of the name in CORRUPTIONS."""
    return np.random.SeedSequence((seed, place, severity, index)).generate_state(4).astype(np.uint32)


@contextmanager
def seeded_numpy(words: Words) -> Iterator[None]:
    """Seed numpy's global generator, which the library draws from, and restore its state afterwards.

    Only one thread enters at a time. A thread that draws from numpy's global generator elsewhere at the same time
    disturbs these draws and its own; no lock here can prevent that.
    """
    with _ONE_AT_A_TIME:
        before = np.random.get_state(legacy=False)
        try:
            np.random.seed(words)
            yield
        finally:
            np.random.set_state(before)
