"""What all tests share: one thread, so that parallel runs do not fight over the cores, and a fixed seed."""

import pytest
import torch

torch.set_num_threads(1)


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
