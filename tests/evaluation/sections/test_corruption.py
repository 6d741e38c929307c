"""The section "corruption" of an evaluation, on a context whose features are its pixels."""

import json
import os
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers.evaluation_contexts import StandInContext
from sklearn.datasets import load_digits

from pml_supcon.corruptions import CORRUPTIONS, Corruption
from pml_supcon.data.images import evenly
from pml_supcon.evaluation.sections import choose_sections
from pml_supcon.evaluation.sections.corruption import corruption
from pml_supcon.evaluation.settings import EvaluateSettings
from pml_supcon.metrics import fit_linear_probe

DIGITS = load_digits()
IMAGES = torch.from_numpy((DIGITS.images * 255 / 16).astype(np.uint8))[:, None]
LABELS = torch.from_numpy(DIGITS.target)


def pixel_context(settings, **options):
    data = {"spec": "digits", "image_size": 8, "in_chans": 1, "test": range(100)}
    data |= {"num_classes": 10, "class_names": tuple("0123456789")}
    splits = [(IMAGES[rows], LABELS[rows]) for rows in (slice(200), slice(300, 400))]
    return StandInContext(*splits, pixels, settings=settings, data=data, **options)


def pixels(images):
    return images.flatten(1).float() / 255


SOME = EvaluateSettings(corruptions=("contrast", "shot_noise"), severities=(4, 2), corruption_images=90, inverse_l2=1.0)
ALL = EvaluateSettings(corruption_images=20, inverse_l2=1.0)


def report(section):
    data = {"spec": "digits", "test": 100, "image_size": 8, "in_chans": 1}
    return {"data": data, "sections": {"corruption": section}}


def test_the_section_by_hand():
    found = asdict(corruption(pixel_context(SOME)))
    assert json.loads(json.dumps(found)) == found
    assert (found["strengths"], found["images"], found["baseline"]) == ("32", 90, None)
    assert found["mean_corruption_error"] is None
    probe = fit_linear_probe(pixels(IMAGES[:200]), LABELS[:200])
    rows = evenly(100, 90)
    clean, labels = IMAGES[300:400][rows], LABELS[300:400][rows].numpy()
    accuracies = {}
    for name in ("contrast", "shot_noise"):
        assert [cell["severity"] for cell in found["corruptions"][name]] == [2, 4]
        for cell in found["corruptions"][name]:
            images = Corruption(name, cell["severity"], seed=0)(clean, rows)
            right = probe.predict(pixels(images).numpy()) == labels
            assert cell["accuracy"] == right.mean()
            assert 0 <= cell["ece"] <= 1
            accuracies[name, cell["severity"]] = right.mean()
    assert found["mean_error"] == pytest.approx(1 - np.mean(list(accuracies.values())))
    for row in found["by_severity"]:
        expected = (accuracies["contrast", row["severity"]] + accuracies["shot_noise", row["severity"]]) / 2
        assert row["accuracy"] == pytest.approx(expected)
    assert found["clean"]["accuracy"] == (probe.predict(pixels(clean).numpy()) == labels).mean()


def test_all_processes_ask_for_the_same_features():
    main, other = pixel_context(SOME), pixel_context(SOME, is_main=False)
    assert corruption(main) is not None
    assert corruption(other) is None
    assert main.asked == other.asked
    assert len(main.asked) == len(set(main.asked)) == 6


def test_a_class_that_train_lacks_is_noted():
    context = pixel_context(SOME)
    context.splits["train"] = (IMAGES[:200], LABELS[:200] % 9)
    assert corruption(context).clean["accuracy"] < 1
    assert "9 (" in context.notes[0]


@pytest.fixture(scope="module")
def full_section():
    return asdict(corruption(pixel_context(ALL)))


def test_an_evaluation_as_its_own_baseline_has_an_mce_of_1(full_section, tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(report(full_section)))
    assert list(full_section["corruptions"]) == list(CORRUPTIONS)
    found = asdict(corruption(pixel_context(replace(ALL, corruption_baseline=path))))
    assert found["mean_corruption_error"] == pytest.approx(1)
    assert found["baseline"] == str(path)
    assert {**found, "mean_corruption_error": None, "baseline": None} == full_section


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("no json", r'with a section "corruption", but .*evaluation\.json'),
        ({"sections": {}}, r'with a section "corruption", but .*evaluation\.json'),
        ({"data": {"spec": "cifar10"}}, "has spec 'cifar10', and this evaluation has 'digits'"),
        ({"strengths": "224"}, "has strengths '224', and this evaluation has '32'"),
        ({"images": 30}, "has images 30, and this evaluation has 20"),
        ({"corruptions": {"fog": []}}, "cannot be the baseline: .* at least one"),
        ({"corruptions": {"fog": [{"severity": 1, "accuracy": 0.5, "ece": 0}]}}, "baseline: .* missing ones: gaussian"),
        ({"corruptions": [1]}, "cannot be read: "),
        ("[" * 100_000, "cannot be read: RecursionError"),
        ("a pipe", "cannot be read: ValueError: Expected a file, but .* is a named pipe"),
    ],
)
def test_an_unsuitable_baseline_is_refused_before_any_features(full_section, tmp_path, change, text):
    path, content = tmp_path / "evaluation.json", change
    if not isinstance(change, str):
        content = report({**full_section, **change})
        content = json.dumps(content | {key: change[key] for key in content if key in change})
    if change == "a pipe":
        os.mkfifo(path)
    else:
        path.write_text(content)
    context = pixel_context(replace(ALL, corruption_baseline=path))
    for check in (corruption, choose_sections):  # before any section runs
        with pytest.raises(ValueError, match=text):
            check(context)
    assert context.asked == []


def test_a_baseline_needs_all_corruptions_and_severities(full_section, tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(report(full_section)))
    with pytest.raises(ValueError, match=r"but got none of: .*fog, .*severity 1"):
        corruption(pixel_context(replace(SOME, corruption_baseline=path)))
    with pytest.raises(FileNotFoundError):
        corruption(pixel_context(replace(ALL, corruption_baseline=tmp_path / "none.json")))
