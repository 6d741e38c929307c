"""Runs on labels of every kind: settings, targets, batches, scores, pictures, evaluation, and a resume."""

import json
import random
import signal
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers.label_data import datasets, write_csv, write_nested, write_parquet  # noqa: F401 - a fixture
from helpers.run_processes import Run, assert_same, die_after, results_of

from pml_supcon.evaluation import app as evaluation
from pml_supcon.targets import Hierarchy, Kernel, LabelSets, SoftLabels
from pml_supcon.training.app import main
from pml_supcon.training.config.parser import parse_settings
from pml_supcon.training.dataloaders import build_batch_mix, build_stage1_sampler
from pml_supcon.training.methods import build_loss, build_target
from pml_supcon.training.scoring import Embedded, score, shots_of

N = 60
QUICK = ["--batch-size", "20", "--epochs", "1", "--warmup_epochs", "0", "--encoder-args.channels", "[8, 8, 8, 8]"]
QUICK += ["--head-dim", "16", "--save-every", "1"]
ONE = SimpleNamespace(num_processes=1, process_index=0)


def parsed(*flags):
    return parse_settings([*map(str, flags)])


def tags(count=N):
    draw = random.Random(0)
    return [[name for name in ("a", "b", "c") if draw.random() < 0.5] for _ in range(count)]


@pytest.fixture
def data(tmp_path, datasets):  # noqa: F811
    """The specification of a data set with a column for every kind of labels."""
    columns = {"tags": tags(), "full": [each or ["a"] for each in tags()], "age": [float(i) for i in range(N)]}
    columns |= {"shares": [[i / N, 1 - i / N] for i in range(N)], "group": [i // 30 for i in range(N)]}
    columns |= {"kind": [i // 15 for i in range(N)], "tail": [0] * 25 + [1] * 35}
    return write_parquet(datasets, tmp_path / "data", train=columns)


#: The flags of each run, the scores of its record, and the target of its loss.
RUNS = {
    "sets": (["tags", "--target_similarity", "overlap"], {"map", "f1_micro", "f1_macro"}, LabelSets("overlap")),
    "soft": (["shares"], {"top1", "top5", "inverse_l2"}, SoftLabels()),
    "hierarchy": (
        ["group,kind", "--level_weights", "[0.25, 0.75]"],
        {"level1/top1", "level1/top5", "level2/top1", "level2/top5"},
        Hierarchy([0.25, 0.75]),
    ),
    "numbers": (["age,kind", "--sigma", "5", "--workers", "1"], {"r2", "spearman", "mae"}, Kernel(5)),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_on_labels_of_a_kind(kind, data, tmp_path):
    (columns, *flags), scores, target = RUNS[kind]
    arguments = [*QUICK, "--data", f"{data}?label={columns}", "--labels", kind, *flags, "--held_out", "0.2"]
    assert build_loss(parsed(*arguments), 2).target == target
    main([*arguments, "--output", str(tmp_path / "run")])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    found = {name.removeprefix("linear_probe/") for name in metrics if name.startswith("linear_probe/")}
    assert found == scores
    has_classes = kind == "hierarchy"
    assert ("retrieval/precision_at_1" in metrics) == has_classes
    assert ("train/knn_accuracy" in metrics) == has_classes
    assert ("train/alignment" in metrics) == has_classes
    assert "train/uniformity" in metrics
    pictures = {path.name for path in (tmp_path / "run").glob("*.png")}
    assert pictures == {"loss_curve.png", "embedding_map.png"} | ({"gallery.png"} if has_classes else set())
    repeated = parsed("--config", tmp_path / "run" / "config.yaml", "--output", tmp_path / "again")
    assert repeated.labels == kind
    assert build_target(repeated, 2) == target


@pytest.mark.parametrize("flags", [["--mixup", "0.4"], ["--cutmix", "1"], ["--mixup", "1", "--cutmix", "1"]])
@pytest.mark.parametrize(("column", "kind"), [("kind", "classes"), ("full", "sets")])
def test_mixed_batches_have_soft_labels(flags, column, kind, data, tmp_path):
    arguments = [*QUICK, "--data", f"{data}?label={column}", "--labels", kind, *flags, "--output", tmp_path / "run"]
    settings = parsed(*arguments)
    assert build_target(settings) == SoftLabels()
    mix = build_batch_mix(settings, 4)
    assert (mix.kind, mix.alpha) == ("both" if len(flags) == 4 else flags[0][2:], float(flags[1]))
    if kind == "classes" or len(flags) == 4:
        main(list(map(str, arguments)))
        assert (tmp_path / "run" / "metrics.json").exists()


def test_balanced_classes_and_draws(data, tmp_path):
    arguments = [
        "--data",
        f"{data}?label=tail",
        "--class_balanced",
        "--draw",
        "effective_number",
        "--draw_beta",
        "0.99",
    ]
    main([*QUICK, *arguments, "--max_per_class", "15", "--output", str(tmp_path / "run")])
    assert build_loss(parsed(*arguments)).class_balanced
    labels = torch.tensor([0] * 10 + [1] * 200)
    shares = []
    for draw in (["uniform"], ["class_balanced"]):
        sampler = build_stage1_sampler(parsed("--batch_size", 20, "--draw", *draw), labels, ONE)
        shares.append(sum(int((labels[batch] == 0).sum()) for batch in sampler))
    assert shares[0] == 10
    assert shares[1] > 50


@pytest.mark.parametrize("kind", ["soft", "numbers"])
def test_batches_of_soft_labels_and_numbers_are_a_shuffle(kind):
    flags = ["--labels", kind, "--batch_size", 4, *(["--sigma", 1] if kind == "numbers" else [])]
    sampler = build_stage1_sampler(parsed(*flags), torch.rand(12, 2), ONE)
    assert sorted(index for batch in sampler for index in batch) == list(range(12))


def test_a_run_without_labels_has_no_target(data, tmp_path):
    arguments = [*QUICK, "--data", f"{data}?label=age", "--labels", "numbers", "--method", "simclr"]
    assert build_loss(parsed(*arguments)).target is None
    main([*arguments, "--output", str(tmp_path / "run")])
    assert "linear_probe/r2" in json.loads((tmp_path / "run" / "metrics.json").read_text())


@pytest.mark.slow
def test_a_queue_keeps_sets_and_a_killed_run_resumes_exactly(data, tmp_path):
    arguments = [*QUICK, "--data", f"{data}?label=tags", "--labels", "sets", "--epochs", "3", "--pictures", "false"]
    arguments += ["--queue-size", "80", "--momentum", "0.9", "--max_per_class", "15"]
    assert Run([*arguments, "--output", tmp_path / "whole"]).wait() == [0]
    died = Run([*arguments, "--output", tmp_path / "killed", "--resume"], before=partial(die_after, 4, 0))
    assert died.wait() == [-signal.SIGKILL]
    assert Run([*arguments, "--output", tmp_path / "killed", "--resume"]).wait() == [0]
    assert_same(results_of(tmp_path / "whole"), results_of(tmp_path / "killed"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*RUNS, "mixed"])
def test_two_processes_train_on_labels_of_a_kind(kind, data, tmp_path):
    (columns, *flags), _, _ = RUNS.get(kind, (["full", "--mixup", "1"], None, None))
    labels = "sets" if kind == "mixed" else kind
    arguments = [*QUICK, "--data", f"{data}?label={columns}", "--labels", labels, *flags, "--output", tmp_path / "run"]
    assert Run(arguments, processes=2).wait() == [0, 0]


# scores


def test_shots_are_scored_where_classes_differ_in_their_images():
    wanted = torch.tensor([0, 0, 1, 1, 2, 2])
    predicted = torch.tensor([0, 0, 1, 0, 0, 0])
    assert shots_of(predicted, wanted, torch.arange(3).repeat(50)) == {}
    counts = torch.arange(3).repeat_interleave(torch.tensor([200, 50, 5]))
    assert shots_of(predicted, wanted, counts) == {"many_shot": 1, "medium_shot": 0.5, "few_shot": 0, "balanced": 0.5}


def test_a_long_tail_has_shots_beside_the_probe():
    labels = torch.tensor([0] * 150 + [1] * 40)
    rows = torch.nn.functional.one_hot(labels).float() + 0.01 * torch.randn(190, 2, generator=torch.Generator())
    part = Embedded(rows, rows, labels)
    found = score({"train": part, "test": part}, labels, None, seed=0)
    assert (found["linear_probe/many_shot"], found["linear_probe/medium_shot"]) == (1, 1)
    assert "linear_probe/few_shot" not in found


# errors


def refused(arguments, capsys):
    """Return the one line of error of a run."""
    with pytest.raises(SystemExit):
        main(list(map(str, arguments)))
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_labels_that_the_data_do_not_have(data, tmp_path, capsys):
    output = [*QUICK, "--output", tmp_path / "run"]
    for column, flags, message in (
        ("group,kind", ["--labels", "hierarchy", "--level_weights", "[1,1,1]"], "--level_weights for each of 2 levels"),
        ("tags", ["--labels", "sets", "--mixup", "1"], "a label in the set of every training image with --mixup"),
        ("tags", [], "--labels says what labels are: classes, sets"),
    ):
        assert message in refused([*output, "--data", f"{data}?label={column}", *flags], capsys)
    assert "`hf:PATH_OR_ID` with --labels sets" in refused([*output, "--labels", "sets"], capsys)


@pytest.mark.parametrize(
    ("kind", "column", "message"),
    [
        (
            "numbers",
            "age,same --sigma 1",
            "training images to have numbers that differ, but those of a column are equal",
        ),
        ("soft", "one", "at least two classes with the largest share"),
    ],
)
def test_labels_that_no_probe_can_be_fitted_on(kind, column, message, tmp_path, datasets, capsys):  # noqa: F811
    columns = {"age": [1.0, 2.0] * 10, "same": [3.0] * 20, "one": [[0.6, 0.4], [0.9, 0.1]] * 10}
    named, *flags = column.split()
    spec = write_parquet(datasets, tmp_path / "set", train=columns) + f"?label={named}"
    assert message in refused([*QUICK, "--data", spec, "--labels", kind, *flags, "--output", tmp_path / "run"], capsys)


def test_numbers_that_are_all_equal_in_test(tmp_path, datasets, capsys):  # noqa: F811
    spec = write_parquet(datasets, tmp_path / "set", train={"age": [1.0, 2.0] * 10}, test={"age": [3.0] * 4})
    line = refused([*QUICK, "--data", spec, "--labels", "numbers", "--sigma", 1, "--output", tmp_path / "run"], capsys)
    assert "Expected the test images to have numbers that differ" in line


# evaluation


def evaluate(run, *flags):
    evaluation.main([str(run), "--map_methods", "pca", *flags])
    return json.loads((run / "evaluation" / "evaluation.json").read_text())


def test_a_run_on_numbers_is_evaluated(tmp_path, datasets, capsys):  # noqa: F811
    spec = write_csv(tmp_path / "csv", age=[i / 2 for i in range(N)])
    run = tmp_path / "run"
    main([*QUICK, "--data", spec, "--labels", "numbers", "--sigma", "5", "--output", str(run)])
    found = evaluate(run)
    assert set(found["sections"]) == {"linear_probe", "map"}
    metrics = json.loads((run / "metrics.json").read_text())
    assert found["sections"]["linear_probe"]["metrics"]["r2"] == pytest.approx(metrics["linear_probe/r2"], abs=1e-4)
    assert len(found["sections"]["map"]["names"]) == 7
    assert any("sections that need classes are left out (retrieval" in note for note in found["notes"])
    page = (run / "evaluation" / "report.html").read_text()
    assert found["sections"]["map"]["names"][0] in page
    capsys.readouterr()
    with pytest.raises(SystemExit):
        evaluate(run, "--sections", "retrieval,map")
    assert "images with classes for --sections retrieval, but the labels are numbers" in capsys.readouterr().err


def test_a_run_on_sets_is_evaluated(data, tmp_path):
    run = tmp_path / "run"
    main([*QUICK, "--data", f"{data}?label=tags", "--labels", "sets", "--output", str(run)])
    found = evaluate(run)
    assert set(found["sections"]["linear_probe"]["metrics"]) == {"map", "f1_micro", "f1_macro"}
    assert found["sections"]["map"]["names"] == ["a", "b", "c", "no label"]


def test_a_run_on_a_hierarchy_is_evaluated_at_its_finest_level(tmp_path):
    counts = {"a/x": 20, "a/y": 20, "b/x": 20}
    run, spec = tmp_path / "run", write_nested(tmp_path / "set", counts)
    main([*QUICK, "--data", spec, "--labels", "hierarchy", "--output", str(run)])
    found = evaluate(run, "--sections", "retrieval,map", "--output", str(run / "evaluation"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert found["sections"]["retrieval"]["metrics"]["precision_at_1"] == metrics["retrieval/precision_at_1"]
    assert found["data"]["classes"] == list(counts)
    assert any("finest level" in note for note in found["notes"])
