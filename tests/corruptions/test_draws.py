"""Draws from numpy's global generator, in threads and in processes forked from them."""

import multiprocessing
import threading
import time

import numpy as np
import pytest

from pml_supcon.corruptions._draws import draw_words, seeded_numpy


def enter_in_a_thread():
    """Return a number that numpy draws inside `seeded_numpy`, or None if the lock is not free."""
    drawn = []

    def draw():
        with seeded_numpy(draw_words(0, 0, 1, 2)):
            drawn.append(np.random.uniform())

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    thread.join(5)
    return drawn[0] if drawn else None


def draw_in_a_child(depth=1):
    """Fork (twice at depth 2); return a draw of a thread inside `seeded_numpy`, and one of the inherited generator."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child():
        sender.send((enter_in_a_thread(), np.random.uniform()) if depth == 1 else draw_in_a_child(depth - 1))

    process = context.Process(target=child)
    process.start()
    try:
        return receiver.recv() if receiver.poll(20) else None
    finally:
        process.kill()
        process.join()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("depth", [1, 2])
def test_a_child_forked_while_a_thread_draws_has_a_free_lock_and_the_old_state(depth):
    np.random.seed(7)
    expected = enter_in_a_thread(), np.random.RandomState(7).uniform()
    inside = threading.Event()

    def hold():
        with seeded_numpy(draw_words(0, 1, 1, 1)):
            np.random.uniform(size=5)
            inside.set()
            time.sleep(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    assert draw_in_a_child(depth) == expected
    thread.join()
    assert enter_in_a_thread() == expected[0]  # the parent's lock is free again


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_inside_leaves_the_lock_free():
    expected = enter_in_a_thread()
    with seeded_numpy(draw_words(0, 0, 1, 1)):
        assert draw_in_a_child()[0] == expected
    assert enter_in_a_thread() == expected
