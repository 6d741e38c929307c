"""The notebook runs in an empty folder, its stored outputs are clean, and a new run is as good as they say."""

import ast
import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
import torch
from sklearn.datasets import load_digits

from pml_supcon import metrics, models, views

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOK = FOLDER / "digits.ipynb"
MOST_BYTES = 400_000
FIGURES = 5
#: The tolerance of a score on another machine: about twice the range over four seeds.
NOISE = {"linear probe, top-1": 0.02, "precision@1": 0.02, "MAP@R": 0.06, "k-NN accuracy": 0.02}
KINDS = {"text/plain", "image/png"}


@pytest.fixture(scope="module")
def run():
    pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
    spec = importlib.util.spec_from_file_location("run_notebooks", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stored():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture
def own_jupyter(tmp_path, monkeypatch):
    """Keep the settings of the user out of the run."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def scores_of(book):
    """Return the output of the cell with the tag `scores`."""
    (cell,) = (cell for cell in book.cells if "scores" in cell.metadata.get("tags", []))
    (output,) = cell.outputs
    return ast.literal_eval(output.data["text/plain"])


def faults(book):
    """Return the faults of the outputs."""
    found = []
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("cells were not run once each, in order")
    for output in outputs:
        if output.output_type == "error":
            found.append(f"an error: {output.ename}")
        elif output.output_type == "stream":
            text = output.text
            if output.name != "stdout" or "\r" in text or "it/s" in text:
                found.append(f"warnings or progress: {text[:80]}")
        else:
            found += [f"an output of the kind {kind}" for kind in set(output.data) - KINDS]
    shown = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
    found += [f"a path: {path}" for path in re.findall(r"/(?:home|root|tmp|usr|work|Users)/\S*", shown)]
    figures = sum("image/png" in output.get("data", {}) for output in outputs)
    if figures != FIGURES:
        found.append(f"{figures} figures, expected {FIGURES}")
    return found


def shortfalls(scores, expected):
    """Return the scores that are worse than expected by more than noise."""
    assert scores.keys() == expected.keys() == NOISE.keys()
    return {name: scores[name] for name in scores if scores[name] < expected[name] - NOISE[name]}


def test_stored_outputs_are_clean_and_small(run, stored):
    assert faults(stored) == []
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    assert dict(stored.metadata) == run.METADATA
    assert {key for cell in stored.cells for key in cell.metadata} <= {"tags"}


@pytest.mark.slow
def test_runs_in_an_empty_folder_and_is_as_good_as_stored(run, stored, tmp_path, own_jupyter):
    (tmp_path / "empty").mkdir()
    book = run.executed(NOTEBOOK, tmp_path / "empty")
    assert faults(book) == []
    assert shortfalls(scores_of(book), scores_of(stored)) == {}
    assert list((tmp_path / "empty").iterdir()) == []


def test_the_install_cell_names_extras_that_exist_and_does_nothing(stored):
    source = stored.cells[1].source
    assert all(line.startswith("#") for line in source.splitlines())
    (extras,) = re.findall(r'%pip install --editable "\.\./\.\.\[([\w,]+)\]"', source)
    project = (FOLDER.parents[1] / "pyproject.toml").read_text()
    assert [extra for extra in extras.split(",") if not re.search(rf"^{extra} = \[", project, re.M)] == []


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (nbformat.v4.new_output("stream", name="stderr", text="UserWarning: careful"), "UserWarning"),
        (nbformat.v4.new_output("stream", name="stdout", text=" 10%|#   | 1/10 [00:00<00:01, 9.9it/s]"), "progress"),
        (nbformat.v4.new_output("stream", name="stdout", text="/home/someone/runs"), "a path: /home/someone/runs"),
        (nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[]), "an error: ValueError"),
        (nbformat.v4.new_output("display_data", data={"image/png": "", "text/plain": ""}), "6 figures, expected 5"),
        (nbformat.v4.new_output("display_data", data={"text/html": ""}), "the kind text/html"),
    ],
)
def test_faults_are_found(stored, output, fault):
    cell = next(cell for cell in stored.cells if cell.cell_type == "code")
    cell.outputs.append(output)
    cell.execution_count = None
    assert fault in " ".join(faults(stored))
    assert "cells were not run once each, in order" in faults(stored)


def test_scores_of_an_untrained_encoder_fall_short(stored):
    digits = load_digits()
    images = views.augmentation("none", 8, mean=[0.3], std=[0.4])(
        torch.tensor(digits.images * 255 / 16).byte()[:, None]
    )
    with torch.no_grad():
        encoder = models.create_encoder("resnet10t", in_chans=1, image_size=8, channels=[16, 32, 64, 128]).eval()
        rows, labels = encoder(images), torch.tensor(digits.target)
    found = metrics.retrieval_metrics(rows[:540], labels[:540], rows[540:], labels[540:])
    probe = metrics.linear_probe_metrics(rows[540:], labels[540:], rows[:540], labels[:540])
    names = {"precision_at_1": "precision@1", "mean_average_precision_at_r": "MAP@R", "knn_accuracy": "k-NN accuracy"}
    scores = {names[name]: found[name] for name in names} | {"linear probe, top-1": probe["top1"]}
    assert shortfalls(scores, scores_of(stored)).keys() == NOISE.keys()
    assert shortfalls(scores_of(stored), scores_of(stored)) == {}
