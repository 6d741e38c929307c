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
#: What a score may fall short of the stored one on another machine: about twice what four seeds differ by.
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
    """Settings of the user are neither read nor written."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def outputs_of(book):
    return [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]


def scores_of(book):
    """What the cell with the tag `scores` shows."""
    (cell,) = (cell for cell in book.cells if "scores" in cell.metadata.get("tags", []))
    (output,) = cell.outputs
    return ast.literal_eval(output.data["text/plain"])


def faults(book):
    """What a reader should not see in the outputs, or misses there."""
    found = []
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("cells were not run once each, in order")
    for output in outputs_of(book):
        if output.output_type == "error":
            found.append(f"an error: {output.ename}")
        elif output.output_type == "stream":
            text = output.text
            if output.name != "stdout" or "\r" in text or "it/s" in text:
                found.append(f"warnings or progress: {text[:80]}")
        else:
            found += [f"an output of the kind {kind}" for kind in set(output.data) - KINDS]
    shown = "".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs_of(book)
    )
    found += [f"a path: {path}" for path in re.findall(r"/(?:home|root|tmp|usr|work|Users)/\S*", shown)]
    figures = sum("image/png" in output.get("data", {}) for output in outputs_of(book))
    if figures != FIGURES:
        found.append(f"{figures} figures, expected {FIGURES}")
    return found


def shortfalls(scores, expected):
    """The scores that are worse than expected, by more than noise."""
    assert scores.keys() == expected.keys() == NOISE.keys()
    return {name: scores[name] for name in scores if scores[name] < expected[name] - NOISE[name]}


def test_stored_outputs_are_clean_and_small(run, stored):
    assert faults(stored) == []
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    assert dict(stored.metadata) == run.METADATA
    assert {key for cell in stored.cells for key in cell.metadata} <= {"tags"}


def test_runs_in_an_empty_folder_and_is_as_good_as_stored(run, stored, tmp_path, own_jupyter):
    (tmp_path / "empty").mkdir()
    book = run.executed(NOTEBOOK, tmp_path / "empty")
    assert faults(book) == []
    assert shortfalls(scores_of(book), scores_of(stored)) == {}
    assert list((tmp_path / "empty").iterdir()) == []


def test_the_install_cell_names_extras_that_exist_and_does_nothing(stored):
    source = stored.cells[1].source
    assert not source.strip() or all(line.startswith("#") for line in source.splitlines())
    (extras,) = re.findall(r'%pip install --editable "\.\./\.\.\[([\w,]+)\]"', source)
    project = (FOLDER.parents[1] / "pyproject.toml").read_text()
    assert [extra for extra in extras.split(",") if not re.search(rf"^{extra} = \[", project, re.M)] == []


def test_a_cell_that_raises_is_told(run, stored, tmp_path, own_jupyter):
    from nbclient.exceptions import CellExecutionError

    stored.cells = [nbformat.v4.new_code_cell("import pml_supcon\npml_supcon.no_such_name")]
    nbformat.write(stored, tmp_path / "broken.ipynb")
    with pytest.raises(CellExecutionError, match="no_such_name"):
        run.executed(tmp_path / "broken.ipynb", tmp_path)


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
    next(cell for cell in stored.cells if cell.cell_type == "code").outputs.append(output)
    assert fault in " ".join(faults(stored))


def test_cells_that_were_not_run_are_found(stored):
    next(cell for cell in stored.cells if cell.cell_type == "code").execution_count = None
    assert faults(stored) == ["cells were not run once each, in order"]


def test_scores_of_an_untrained_encoder_fall_short(stored):
    expected = scores_of(stored)
    digits = load_digits()
    images = torch.tensor(digits.images * 255 / 16).to(torch.uint8).unsqueeze(1)
    images = views.augmentation("none", 8, mean=[0.3], std=[0.4])(images)
    with torch.no_grad():
        encoder = models.create_encoder("resnet10t", in_chans=1, image_size=8, channels=[16, 32, 64, 128]).eval()
        features, labels = encoder(images), torch.tensor(digits.target)
    queries, references = slice(0, 540), slice(540, None)
    found = metrics.retrieval_metrics(features[queries], labels[queries], features[references], labels[references])
    probe = metrics.linear_probe_metrics(features[references], labels[references], features[queries], labels[queries])
    names = {"precision_at_1": "precision@1", "mean_average_precision_at_r": "MAP@R", "knn_accuracy": "k-NN accuracy"}
    scores = {names[name]: found[name] for name in names} | {"linear probe, top-1": probe["top1"]}
    assert shortfalls(scores, expected).keys() == NOISE.keys()
    assert shortfalls(expected, expected) == {}
