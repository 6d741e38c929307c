"""The settings of all tests: a fixed seed, and one thread in every process unless OMP_NUM_THREADS asks for more.

Tests that run in parallel then do not compete for the cores.
"""

import os

import pytest
import torch

torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def searchers_used(monkeypatch):
    """The searchers that are made during the test."""
    from pml_supcon.metrics import retrieval
    from pml_supcon.search.indexes import make_searcher

    used = []

    def made(*arguments, **options):
        used.append(make_searcher(*arguments, **options))
        return used[-1]

    monkeypatch.setattr(retrieval, "make_searcher", made)
    return used
