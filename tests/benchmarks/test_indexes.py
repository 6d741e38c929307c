"""The benchmark of indexes: a quick run, and that a poor index shows."""

import indexes
import pytest
import tables
from retrieval import Points


def test_quick_run(capsys, monkeypatch):
    monkeypatch.setattr(tables, "keep_table", lambda *_: pytest.fail("a quick run is no record"))
    rows = {row["index"]: row for row in indexes.main(["--quick"])}
    assert rows["exact"]["recall"] == [1.0, 1.0, 1.0]
    for name in ("ivf", "hnsw"):
        assert 0.4 < rows[name]["recall"][1] <= 1
        assert rows[name]["build"] > 0
        assert rows[name]["search"] > 0
    assert "| index | build, s | search, s | recall@1 | recall@10 | recall@100 |" in capsys.readouterr().out


def test_a_poor_index_shows():
    _, poor = indexes.measure(Points(1000, 10, queries=30), ["exact", "PQ2x4"])
    assert max(poor["recall"]) < 0.7
