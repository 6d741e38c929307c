"""The pictures of a run: names are shown as they are, and a picture that fails costs no score."""

import json

import pytest
import torch
from helpers.small_runs import TINY
from matplotlib.figure import Figure
from matplotlib.text import Text

from pml_supcon.training import pictures, scoring
from pml_supcon.training.app import main
from pml_supcon.training.pictures import draw_embedding_map, draw_gallery

NAMES = [r"$\frac", "$x$", "<script>", "_x", "a&b", "日本", "caf\\xe9", "two\nlines", "", "{}%s\x07"]


@pytest.fixture
def texts(monkeypatch):
    """The texts of the figures that are saved, each with the choice to read formulas in it."""
    found, save = [], Figure.savefig

    def saved(figure, *arguments, **options):
        save(figure, *arguments, **options)
        found.extend((text.get_text(), text.get_parse_math()) for text in figure.findobj(Text) if text.get_text())

    monkeypatch.setattr(Figure, "savefig", saved)
    return found


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("names", [NAMES, NAMES[:3], NAMES * 2])
def test_names_are_no_markup_and_none_is_hidden(names, texts, tmp_path):
    labels = torch.arange(60) % len(names)
    rows = torch.nn.functional.normalize(torch.randn(60, 8))
    draw_embedding_map(rows, labels, names, tmp_path / "map.png", 0)
    assert [text for text, _ in texts if text in names] == [name for name in names if name]
    split = [(torch.zeros(1, 8, 8, dtype=torch.uint8), 0)] * 60, rows, labels
    draw_gallery(split, split, names, tmp_path / "gallery.png", own=True)
    assert f"query: {names[0]}" in [text for text, _ in texts] or len(names) > 3
    assert not any(formula for _, formula in texts)
    assert {path.name for path in tmp_path.iterdir()} == {"map.png", "gallery.png"}


@pytest.mark.parametrize("error", [ValueError("no\nglyph"), MemoryError(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("name", ["draw_loss_curve", "draw_embedding_map", "draw_gallery"])
def test_a_picture_that_fails_is_one_line(name, error, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        assert (tmp_path / "run" / "metrics.json").exists()
        assert (tmp_path / "run" / "encoder").exists()
        raise error

    monkeypatch.setattr(scoring, name, fail)
    main([*TINY, "--epochs", "1", "--output", str(tmp_path / "run")])
    picture = f"{name.removeprefix('draw_')}.png"
    output, errors = capsys.readouterr()
    notes = [line for line in errors.splitlines() if line.startswith("note:")]
    assert notes == [f"note: {picture} was not drawn: {error!r}"]
    assert output.splitlines()[-1] == f"run folder: {tmp_path / 'run'}"
    assert {path.stem for path in (tmp_path / "run").glob("*.png")} == {
        "loss_curve", "embedding_map", "gallery"
    } - {picture.removesuffix(".png")}  # fmt: skip
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["linear_probe/top1"] >= 0


def test_a_picture_that_fails_half_way_leaves_no_file(tmp_path, monkeypatch, capsys):
    def half(figure, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures.Figure, "savefig", half)
    main([*TINY, "--epochs", "1", "--output", str(tmp_path / "run")])
    assert capsys.readouterr().err.count("note: ") == 3
    assert list((tmp_path / "run").glob("*.png")) == []
