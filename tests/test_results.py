"""The committed results are what the experiments and the code that judges them make of their scores, and are shown."""

import html
import json
import re
from pathlib import Path

import pytest

from pml_supcon.experiments.claims import EXPERIMENTS
from pml_supcon.experiments.record import compared
from pml_supcon.experiments.scales import SCALES
from pml_supcon.experiments.table import tables_of

RESULTS = Path(__file__).parent.parent / "docs" / "results"
SHOWN = {"digits": tuple(EXPERIMENTS), "cifar10-small": ("losses", "methods", "positives")}
OF_RESULTS = pytest.mark.parametrize(
    ("scale", "name"), [(scale, name) for scale, names in SHOWN.items() for name in names]
)


def result(scale, name):
    return json.loads((RESULTS / scale / f"{name}.json").read_text())


@OF_RESULTS
def test_results_are_those_of_the_experiment_as_it_stands(scale, name):
    record, experiment, scale = result(scale, name), EXPERIMENTS[name](SCALES[scale]), SCALES[scale]
    given = {flag.removeprefix("--"): value for flag, value in record["given"].items()}
    assert given.keys() <= ({"data"} if scale.name == "cifar10-small" else set())
    assert record["settings"] == {**scale.settings, **given}
    assert record["seeds"] == list(range(scale.seeds))
    assert record["notes"] == list(experiment.notes)
    for text in ("title", "claim", "source", "x_title"):
        assert record[text] == getattr(experiment, text), text
    trained = {training.name: training for training in experiment.trainings}
    assert record["trainings"].keys() == trained.keys()
    for about in record["trainings"].values():
        assert list(about["scores"]) == [str(seed) for seed in record["seeds"]]
        assert about["tried"]
    of_seeds = [
        {row: about["scores"][str(seed)] for row, about in record["trainings"].items()} for seed in record["seeds"]
    ]
    shown = [
        (line.label, line.panel, line.paper, [line.quantity.of(each) for each in of_seeds]) for line in experiment.lines
    ]
    assert [(line["label"], line["panel"], line["paper"], line["values"]) for line in record["lines"]] == shown
    assert record["comparisons"] == [compared(comparison, of_seeds) for comparison in experiment.comparisons]


@OF_RESULTS
def test_results_are_shown(scale, name):
    record = result(scale, name)
    assert (RESULTS / scale / f"{name}.md").read_text() == tables_of(record)
    page = (RESULTS / f"{scale.replace('-', '_')}.md").read_text()
    assert f'--8<-- "docs/results/{scale}/{name}.md"' in page
    assert f"({scale}/{name}.svg)" in page
    drawn = html.unescape((RESULTS / scale / f"{name}.svg").read_text())
    for line in record["lines"]:
        assert f">{line['panel']}<" in drawn
        assert f">{(line['label'] if line['x'] is None else line['series']).replace('`', '')}<" in drawn


@pytest.mark.parametrize("scale", SHOWN)
def test_results_are_of_known_code_and_took_the_promised_time(scale):
    records = [result(scale, name) for name in SHOWN[scale]]
    commits = [commit for each in records for commit in (*each["origin"]["commit"], each["assembled"]["commit"])]
    assert [commit for commit in commits if not re.fullmatch("[0-9a-f]{12}", commit)] == []
    seconds = {name: took for record in records for name, took in record["seconds"].items()}  # shared ones once
    if scale == "digits":
        assert sum(seconds.values()) <= 2 * 3600
