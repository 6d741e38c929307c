"""Names of classes, folders and runs that are no ASCII or look like markup, from training to the report."""

import io
import json
import os
import re
import sys

import numpy as np
import pytest
import torch
from markupsafe import escape
from PIL import Image

from pml_supcon.data.images import printable
from pml_supcon.evaluation import app as evaluate
from pml_supcon.evaluation import sections
from pml_supcon.evaluation.report import figures, page
from pml_supcon.training import app as train

CLASSES = [rb"$\frac", b"<script>alert(1)</script>".replace(b"/", b"|"), b"_x", b"a&b", "日本".encode(), b"caf\xe9"]
FLAGS = ["--batch-size", "24", "--epochs", "1", "--warmup-epochs", "0", "--head-dim", "8"]
FLAGS += ["--encoder-args.channels", "[8, 8, 8, 8]"]
SECTIONS = ["--sections", "retrieval,linear_probe,gallery,map", "--map_methods", "pca", "--shots", "1", "--draws", "2"]
SECTIONS += ["--knn_k", "3", "--inverse_l2", "1"]


def write_classes(root, names):
    """Write noise, brighter from class to class, in folders of these names."""
    for place, name in enumerate(names):
        folder = os.path.join(os.fsencode(root), name)
        os.makedirs(folder)
        for index in range(12):
            pixels = torch.randint(0, 40, (8, 8), dtype=torch.uint8).numpy() + np.uint8(35 * place)
            Image.fromarray(pixels).save(os.fsdecode(os.path.join(folder, b"%d.png" % index)))


def on_console(encoding, monkeypatch):
    """Replace both streams by consoles of an encoding, and return them."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    return streams


def written(stream):
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_any_name_passes_from_training_to_the_report(encoding, tmp_path, monkeypatch):
    root, run = tmp_path / "日本 $x$", tmp_path / "rün <b>"
    write_classes(root, CLASSES)
    streams = on_console(encoding, monkeypatch)
    train.main(["--data", f"imagefolder:{root}", "--output", str(run), *FLAGS])
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["data"] == f"imagefolder:{root}"
    assert {path.name for path in run.glob("*.png")} == {"loss_curve.png", "embedding_map.png", "gallery.png"}
    evaluate.main([str(run), *SECTIONS])
    output, errors = map(written, streams)
    names = [printable(os.fsdecode(name)) for name in CLASSES]
    assert "note: " not in errors
    assert "caf\\xe9" in names
    for name in names:
        assert name.encode(encoding, "backslashreplace").decode(encoding) in output.splitlines()[0]
    assert f"report: {run}".encode(encoding, "backslashreplace").decode(encoding) in output
    [file] = run.glob("evaluation*/evaluation.json")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert sorted(found["data"]["classes"]) == sorted(names)
    assert sorted(found["sections"]["retrieval"]["per_class"]) == sorted(names)
    text = file.with_name("report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert all(str(escape(name)) in text for name in names)
    train.main(["--output", str(run), "--resume"])  # which reads the settings and the record
    assert written(streams[0]).count("run folder: ") == 2


def fail(*arguments, **options):
    raise RuntimeError("no\nfont")


@pytest.mark.parametrize(
    ("place", "name", "what"),
    [
        (figures, "draw", "the figure learning_curve"),
        (page, "encode_each", "the gallery"),
        (page, "build_map", "the map"),
        (evaluate, "as_pixels", None),
    ],
)
def test_a_picture_of_the_report_that_fails_is_a_note(place, name, what, tmp_path, monkeypatch, capsys):
    write_classes(tmp_path / "images", [b"ape", b"bee"])
    train.main(["--data", f"imagefolder:{tmp_path}/images", "--output", f"{tmp_path}/run", *FLAGS])
    whole = check(tmp_path, capsys)
    monkeypatch.setattr(place, name, fail)
    broken = check(tmp_path, capsys)
    assert broken["sections"] == whole["sections"]
    assert broken["notes"] != whole["notes"] == []
    for note in broken["notes"]:
        assert "no font" in note or r"no\nfont" in note
    text = next((tmp_path / "run").glob("evaluation*/report.html")).read_text()
    if what:
        assert f"The report lacks {what}: RuntimeError('no\\nfont')" in broken["notes"]
        ids = re.findall(r'<section id="([\w-]+)"', text)
        assert re.findall(r'<li><a href="#([\w-]+)"', text) == ids
        assert ("could not be drawn" in text) == (name == "draw")
    else:
        assert re.match(r"The report has no picture of test image \d+: no font", broken["notes"][0])


def check(tmp_path, capsys):
    """Evaluate the run; its notes are on the console, one a line."""
    capsys.readouterr()
    evaluate.main([f"{tmp_path}/run", *SECTIONS])
    [file] = (tmp_path / "run").glob("evaluation*/evaluation.json")
    found = json.loads(file.read_text())
    output = capsys.readouterr().out
    assert output.count("\nnote: ") == len(found["notes"])
    return found


@pytest.mark.parametrize("section", ["gallery", "map"])
def test_a_section_of_pictures_that_fails_is_a_note(section, tmp_path, monkeypatch, capsys):
    write_classes(tmp_path / "images", [b"ape", b"bee"])
    train.main(["--data", f"imagefolder:{tmp_path}/images", "--output", f"{tmp_path}/run", *FLAGS])
    monkeypatch.setitem(sections.SECTIONS, section, fail)
    found = check(tmp_path, capsys)
    assert found["notes"] == [f"The section {section} is left out: no font"]
    assert set(found["sections"]) == {"retrieval", "linear_probe", "gallery", "map"} - {section}
