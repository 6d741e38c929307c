"""A fixture of the benchmarks' tests."""

import harness
import pytest
from memory import Peak


@pytest.fixture
def no_probe(monkeypatch):
    """Replace the processes that measure peaks: 64 bytes for each pair."""
    monkeypatch.setattr(harness, "probe", lambda name, case, limit_s: Peak("ok", 64 * case.N**2 / 1e6))
