"""The tables and plots of experiments."""

import pytest

from pml_supcon.experiments.plot import plot
from pml_supcon.experiments.tables import tables_of


def record_with(lines, **more):
    return {
        "experiment": "losses", "scale": "digits", "title": "Losses", "claim": "A over B.", "source": "table 1",
        "notes": ["A note."], "x_title": "x", "x_log": False, "seeds": [0, 1, 2], "lines": lines,
        "origin": {"processes": ["1"], "device": ["cpu"], "cpus": ["2"], "date": ["2026-01-01", "2026-01-02"],
                   "version/torch": ["2"], "version/pml-supcon": ["0.1"], "commit": ["abc"], "precision": ["no"]},
        "assembled": {"commit": "def", "date": "2026-01-03", "device": "cpu"},
        "trainings": {"a": {"at_edge": True, "diverged": {}, "not_scored": {"2": ["head: features are not finite"]}},
                      "b": {"at_edge": False, "diverged": {"1": "loss"}, "not_scored": {}}},
        "comparisons": [
            {"title": "a over b", "paper": 11.3, "percent": True, "mean": 0.02, "low": 0.011, "high": 0.029,
             "verdict": "held", "claimed": True},
            {"title": "b over c", "paper": None, "percent": True, "mean": 0.02, "low": -0.011, "high": 0.029,
             "verdict": "not told apart", "claimed": False},
        ],
        "given": {"--data": "hf:my own", "--seeds": "0 1 2"},
        **more,
    }  # fmt: skip


def line_with(label, values, **more):
    line = {"label": label, "values": values, "series": "", "x": None, "panel": "top-1, %", "percent": True}
    return line | {"paper": None} | more


def test_tables_show_scores_the_paper_and_the_verdict():
    text = tables_of(record_with([line_with("a", [0.9, 0.92, 0.94], paper=78.7), line_with("b", [0.8, None, 0.8])]))
    assert "| a | 92.00 ± 2.00 | 78.7 |" in text
    assert "| b | diverged | \u2013 |" in text
    assert "| a over b | **held** | +2.00 | +1.10 to +2.90 | +11.3 |" in text
    assert "| b over c (not in the paper) | not told apart | +2.00 |" in text
    assert "so a better one may exist, for: `a`." in text
    assert "`b` diverged with seed 1; its accuracy counts as chance." in text
    assert "`a` could not be scored with seed 2: head: features are not finite." in text
    command = "python recipes/reproduce.py losses --scale digits --data 'hf:my own' --seeds 0 1 2"
    assert f"`{command}`, seeds 0, 1, 2; trained on 2026-01-01, 2026-01-02, processes: 1" in text
    assert "precision: float32; torch 2, commit abc; assembled on 2026-01-03 with def." in text


def test_a_table_of_an_installed_package_names_its_version():
    text = tables_of(record_with([line_with("a", [0.9, 0.9, 0.9])], assembled={"commit": None, "date": "2026-01-03"}))
    assert "`pml-supcon reproduce losses --scale digits" in text
    assert "torch 2, pml-supcon 0.1; assembled on 2026-01-03 with 0.1." in text


def test_a_plot_of_diverged_trainings_alone_is_empty(tmp_path):
    plot(record_with([line_with("a", [None, 0.9, 0.9])]), tmp_path / "a.svg")
    assert "all diverged" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize("with_x", [False, True])
def test_plots_have_every_line(with_x, tmp_path):
    lines = [
        line_with(f"name {place}", [0.9, 0.92, 0.94], series=f"series {place % 2}", x=float(place) if with_x else None)
        for place in range(4)
    ] + [line_with("another measure", [3.0, 4.0, 5.0], panel="seconds", percent=False)]
    plot(record_with(lines, x_title="the place"), tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text()
    shown = ("series 0", "series 1", "the place") if with_x else tuple(f"name {place}" for place in range(4))
    assert all(f">{text}<" in svg for text in (*shown, "another measure", "seconds"))
