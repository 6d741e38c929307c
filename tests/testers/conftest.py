import pytest
import torch

from pml_supcon.testers import retrieval
from pml_supcon.testers.indexes import make_searcher


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def searchers_used(monkeypatch):
    """The searchers that are made during the test."""
    used = []

    def made(*arguments, **options):
        used.append(make_searcher(*arguments, **options))
        return used[-1]

    monkeypatch.setattr(retrieval, "make_searcher", made)
    return used
