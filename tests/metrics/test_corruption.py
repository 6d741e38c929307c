import numpy as np
import pytest
import torch
from helpers.labelled_points import overlapping
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pml_supcon.corruptions import CORRUPTIONS
from pml_supcon.metrics import fit_linear_probe
from pml_supcon.metrics.calibration import expected_calibration_error
from pml_supcon.metrics.corruption import (
    Scores,
    corruption_errors,
    corruption_metrics,
    mean_corruption_error,
    probe_scores,
    relative_mean_corruption_error,
    scores_by_severity,
)


def grid(names=CORRUPTIONS, severities=(1, 2, 3, 4, 5), seed=0):
    rng = np.random.default_rng(seed)
    return {(n, s): Scores(accuracy=rng.random(), ece=rng.random()) for n in names for s in severities}


def random_errors(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0.3, 1, 5).tolist() for name in CORRUPTIONS}


def clusters(seed, classes=4):
    points, labels = overlapping(400, seed=seed, classes=classes, width=4)
    return points, labels * 10


@pytest.mark.parametrize("classes", [2, 4])
def test_probe_scores_agree_with_scikit_learn(classes):
    (train, learnt), (test, wanted) = clusters(1, classes), clusters(2, classes)
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(train), learnt)
    probabilities = model.predict_proba(scaler.transform(test))
    right = model.predict(scaler.transform(test)) == wanted
    probe = fit_linear_probe(train, learnt)
    found = probe_scores(probe, torch.from_numpy(test), torch.from_numpy(wanted), bins=10)
    assert found["accuracy"] == right.mean()
    expected = expected_calibration_error(probabilities, wanted // 10, bins=10)
    assert found["ece"] == pytest.approx(expected, abs=1e-9)
    assert found["ece"] > 0.01
    assert 0.3 < found["accuracy"] < 1
    for unseen in (-5, 5, 99):  # a label that training lacks counts as an error
        found = probe_scores(probe, test, np.where(wanted == 10, unseen, wanted))
        assert found["accuracy"] == (right & (wanted != 10)).mean()
        padded, columns = np.pad(probabilities, ((0, 0), (0, 1))), np.where(wanted == 10, classes, wanted // 10)
        assert found["ece"] == pytest.approx(expected_calibration_error(padded, columns), abs=1e-9)


def test_metrics_are_means_over_the_grid():
    cells = grid()
    found = corruption_metrics(cells)
    assert len(found) == 2 * 75 + 2 * 5 + 1
    for severity in range(1, 6):
        for metric in ("accuracy", "ece"):
            mean = sum(cells[name, severity][metric] for name in CORRUPTIONS) / 15
            assert found[f"{metric}_severity_{severity}"] == pytest.approx(mean)
            assert scores_by_severity(cells)[severity][metric] == pytest.approx(mean)
            assert found[f"{metric}_fog_{severity}"] == cells["fog", severity][metric]
    assert found["mean_error"] == pytest.approx(sum(1 - cell["accuracy"] for cell in cells.values()) / 75)
    mixed = dict(sorted(cells.items(), key=lambda item: -item[0][1]))
    assert corruption_errors(mixed)["snow"] == [1 - cells["snow", s]["accuracy"] for s in range(1, 6)]


def test_a_hole_in_the_grid_is_named():
    cells = grid(("fog", "snow"), (2, 4))
    del cells["snow", 4]
    with pytest.raises(ValueError, match="every severity of every corruption, but got none for snow at 4"):
        corruption_metrics(cells)
    with pytest.raises(ValueError, match=r"at least one .* but got none"):
        corruption_metrics({})


def test_mean_corruption_error_by_hand():
    errors, baseline = random_errors(1), random_errors(2)
    ratios = [sum(errors[name]) / sum(baseline[name]) for name in CORRUPTIONS]
    assert mean_corruption_error(errors, baseline) == pytest.approx(sum(ratios) / 15)
    reordered = dict(reversed(baseline.items()))
    assert mean_corruption_error(errors, reordered) == mean_corruption_error(errors, baseline)


def test_relative_mean_corruption_error_by_hand():
    errors, baseline = random_errors(1), random_errors(2)
    rises = [sum(e - 0.1 for e in errors[n]) / sum(b - 0.2 for b in baseline[n]) for n in CORRUPTIONS]
    found = relative_mean_corruption_error(errors, baseline, clean_error=0.1, baseline_clean_error=0.2)
    assert found == pytest.approx(sum(rises) / 15)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"fog": None, "snow": None, "spatter": [0.5] * 5}, "but got missing ones: snow, fog; unknown ones: spatter"),
        ({"fog": [0.5] * 4}, "severities 1 to 5, but got 4 under fog"),
        ({"fog": [0.5] * 4 + [1.5]}, r"to be in \[0, 1\], but got 1.5"),
        ({"fog": [0.0] * 5}, "above 0 for every corruption, but got no error under fog"),
    ],
)
def test_wrong_baselines(changes, text):
    changed = {name: row for name, row in {**random_errors(2), **changes}.items() if row is not None}
    with pytest.raises(ValueError, match="`baseline`.*" + text):
        mean_corruption_error(random_errors(1), changed)


def test_errors_of_a_wrong_type_and_baselines_without_a_rise_are_rejected():
    with pytest.raises(TypeError, match="`errors` to be a mapping, but got list"):
        mean_corruption_error([0.5] * 15, random_errors(1))
    baseline = {**random_errors(2), "jpeg_compression": [0.1, 0.3, 0.2, 0.1, 0.3]}
    with pytest.raises(ValueError, match="no rise under jpeg_compression"):
        relative_mean_corruption_error(random_errors(1), baseline, clean_error=0.1, baseline_clean_error=0.2)
    with pytest.raises(ValueError, match=r"`clean_error` to be in \[0, 1\], but got 30"):
        relative_mean_corruption_error(random_errors(1), baseline, clean_error=30, baseline_clean_error=0.1)
