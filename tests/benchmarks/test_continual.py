"""The comparison of methods of continual learning: its tables are right, and it runs through and continues."""

import inspect
import json
import shutil

import continual
import pytest

from pml_supcon.evaluation.report.tables import NONE
from pml_supcon.training import app


def record(class_il, task_il, forgetting):
    return {
        "average_accuracy": {"class_il": class_il, "task_il": task_il},
        "forgetting": {"class_il": forgetting, "task_il": forgetting},
    }


RECORDS = {
    "co2l": [record(0.8, 0.9, 0.2), record(0.7, 0.9, 0.4)],
    "er": [record(0.6, 0.9, 0.3), record(0.49, 0.9, 0.3)],
    "finetune": [record(0.2, 0.5, 0.9), record(0.9, 0.6, 0.9)],
    "joint": [record(0.9, 0.9, None), record(0.9, 0.9, None)],
}


def test_rows_have_means_deviations_and_paired_intervals():
    rates = dict.fromkeys(RECORDS, 0.1)
    rows = {row[0]: row[2:] for row in continual.score_rows("digits, 50", RECORDS, rates)}
    # 0.2 and 0.21: mean 0.205, standard error 0.005, and Student's factor of one degree of freedom is 12.706
    assert rows["digits, 50: `co2l`"] == [
        *("0.7500 ± 0.0707", "0.9000 ± 0.0000", "0.3000 ± 0.1414"),
        *("+0.2050 [+0.1415, +0.2685]", "+0.0000 [+0.0000, +0.0000]"),
    ]
    assert rows["digits, 50: `er`"][3:] == ["", ""]
    assert rows["digits, 50: `joint`"][2] == NONE
    assert all(len(row) + 2 == len(continual.HEADER) for row in rows.values())


def test_orderings_have_a_verdict():
    rows = {row[0]: row[1:] for row in continual.ordering_rows("digits, 50", RECORDS)}
    weaker = "co2l, distillation 0.1"  # it is not the paper's Co2L
    records = {weaker: RECORDS["co2l"], "co2l without contrast": RECORDS["er"], **RECORDS}
    assert [row[0] for row in continual.ordering_rows("", records)][1:] == [
        ": `co2l` over `er`",
        ": `co2l` over `co2l without contrast`",
    ]
    assert list(rows) == ["digits, 50: `er` over `finetune`", "digits, 50: `co2l` over `er`"]
    assert [row[1] for row in rows.values()] == ["not told apart", "held"]
    assert rows["digits, 50: `er` over `finetune`"][2:] == ["+0.3500 [-0.2853, +0.9853]", "not told apart"]
    assert all(len(row) + 1 == len(continual.HEADER_OF_ORDERINGS) for row in rows.values())


def test_finished_runs_are_kept_and_a_run_without_buffer_is_shared(tmp_path, monkeypatch):
    started = []

    def run(path, flags):
        started.append((path.name, dict(flags)))
        path.mkdir()
        (path / "continual.json").write_text(json.dumps(record(flags["learning_rate"] + flags["seed"], 0.5, 0.1)))
        return path.name

    monkeypatch.setattr(continual, "run", run)
    part = continual.Part("digits", {"data": "digits"}, (50, 200), 2, ("co2l", "finetune"), (0.01, 0.3, 0.1))
    # the best of three learning rates, with the largest buffer
    rates = continual.choose_rates(part, tmp_path)
    assert rates == {"co2l": 0.3, "finetune": 0.3}
    # on images held out of the training images
    tuned = {(flags["method"], flags.get("buffer_size"), flags["seed"], flags["held_out"]) for _, flags in started}
    assert tuned == {("co2l", 200, continual.TUNING_SEED, 0.2), ("finetune", None, continual.TUNING_SEED, 0.2)}
    assert len(started) == 6
    started.clear()
    found = continual.run_part(part, rates, tmp_path)
    assert len(started) == 2 * (2 + 1)
    flags = {"data": "digits", "method": "co2l", "buffer_size": 50, "learning_rate": 0.3, "seed": 1}
    assert ("digits-co2l-learning_rate0.3-seed1-buffer_size50", flags) in started
    assert found[50]["finetune"] == found[200]["finetune"]
    assert [each["average_accuracy"]["class_il"] for each in found[50]["co2l"]] == [0.3, 1.3]
    # a run that is removed is repeated, alone
    shutil.rmtree(tmp_path / "digits-co2l-learning_rate0.3-seed0-buffer_size200")
    started.clear()
    assert continual.run_part(part, rates, tmp_path) == found
    assert [name for name, _ in started] == ["digits-co2l-learning_rate0.3-seed0-buffer_size200"]


def recipe_that(says, folder, monkeypatch):
    """Replace the recipe by a script that writes an error and fails."""
    script = folder / "recipe.py"
    script.write_text(f"import sys\nsys.exit({says!r})")
    monkeypatch.setattr(continual, "RECIPE", script)


def test_a_diverged_run_counts_as_chance_and_another_error_ends_the_comparison(tmp_path, monkeypatch):
    recipe_that("the loss is nan; another --output with a lower --learning_rate may do better", tmp_path, monkeypatch)
    found = continual.run_missing({0: (".", {"seed": 0})}, tmp_path)
    assert found == {0: continual.CHANCE}
    rows = continual.score_rows("digits, 50", {"er": [found[0]]}, {"er": 0.1})
    assert rows == [["digits, 50: `er`, 1 diverged", "0.1", "0.1000", "0.5000", NONE, "", ""]]
    recipe_that("no such data", tmp_path, monkeypatch)
    (tmp_path / "continual.json").unlink()
    with pytest.raises(RuntimeError, match="no such data"):
        continual.run_missing({0: (".", {"seed": 0})}, tmp_path)


def test_the_recipe_says_what_the_comparison_takes_for_divergence():
    assert continual.DIVERGED in " ".join(inspect.getsource(app.run_program).replace('"', "").split())


@pytest.mark.slow
def test_the_comparison_runs_through(tmp_path, capsys):
    rows = continual.main(["--quick", "--runs", str(tmp_path)])
    assert [row[0] for row in rows] == [f"digits, 20: `{name}`" for name in continual.QUICK[0].methods]
    assert "`co2l` over `er`" in capsys.readouterr().out
