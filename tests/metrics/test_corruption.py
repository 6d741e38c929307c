import numpy as np
import pytest
import torch
from helpers.labelled_points import overlapping
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pml_supcon.corruptions import CORRUPTIONS
from pml_supcon.metrics import fit_linear_probe
from pml_supcon.metrics.corruption import (
    Scores,
    corruption_errors,
    corruption_metrics,
    mean_corruption_error,
    probe_scores,
    relative_mean_corruption_error,
    scores_by_severity,
)


def calibration_error_by_hand(probabilities, right, bins):
    """Loops over bins that are open below and closed above."""
    confidence, total = probabilities.max(axis=1), 0.0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


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
def test_probe_scores_by_hand(classes):
    (train, learnt), (test, wanted) = clusters(1, classes), clusters(2, classes)
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(train), learnt)
    probabilities = model.predict_proba(scaler.transform(test))
    right = model.predict(scaler.transform(test)) == wanted
    found = probe_scores(fit_linear_probe(train, learnt), torch.from_numpy(test), torch.from_numpy(wanted), bins=10)
    assert found["accuracy"] == right.mean()
    assert found["ece"] == pytest.approx(calibration_error_by_hand(probabilities, right, 10), abs=1e-9)
    assert found["ece"] > 0.01
    assert 0.3 < found["accuracy"] < 1


def test_a_label_that_the_probe_never_saw_is_an_error():
    (train, learnt), (test, wanted) = clusters(1), clusters(2)
    probe = fit_linear_probe(train, learnt)
    for strange in (-5, 15, 99):
        changed = np.where(wanted == 20, strange, wanted)
        found = probe_scores(probe, test, changed)
        right = probe.predict(test) == changed
        assert found["accuracy"] == right.mean()
        by_hand = calibration_error_by_hand(probe.predict_proba(test), right, 15)
        assert found["ece"] == pytest.approx(by_hand, abs=1e-9)


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
    assert mean_corruption_error(baseline, baseline) == pytest.approx(1)
    by_cell = np.mean([np.divide(errors[name], baseline[name]).mean() for name in CORRUPTIONS])
    assert mean_corruption_error(errors, baseline) != pytest.approx(by_cell)  # sums first, then the ratio
    reordered = dict(reversed(baseline.items()))
    assert mean_corruption_error(errors, reordered) == mean_corruption_error(errors, baseline)


def test_relative_mean_corruption_error_by_hand():
    errors, baseline = random_errors(1), random_errors(2)
    rises = [sum(e - 0.1 for e in errors[n]) / sum(b - 0.2 for b in baseline[n]) for n in CORRUPTIONS]
    found = relative_mean_corruption_error(errors, baseline, clean_error=0.1, baseline_clean_error=0.2)
    assert found == pytest.approx(sum(rises) / 15)
    none = {name: [0.1] * 5 for name in CORRUPTIONS}
    found = relative_mean_corruption_error(none, baseline, clean_error=0.1, baseline_clean_error=0.2)
    assert found == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"fog": None, "snow": None}, ValueError, "but got none for snow, fog, and unknown ones: n"),
        ({"spatter": [0.5] * 5}, ValueError, "unknown ones: spatter"),
        ({"fog": [0.5] * 4}, ValueError, "severities 1 to 5, but got 4 under fog"),
        ({"fog": [0.5] * 4 + [1.5]}, ValueError, r"to be in \[0, 1\], but got 1.5"),
        ({"fog": [0.5] * 4 + ["1"]}, TypeError, "to be a number, but got '1'"),
        ({"fog": [0.0] * 5}, ValueError, "above 0 for every corruption, but got no error under fog"),
    ],
)
def test_wrong_baselines(changes, error, text):
    changed = {name: row for name, row in {**random_errors(2), **changes}.items() if row is not None}
    with pytest.raises(error, match=text):
        mean_corruption_error(random_errors(1), changed)
    if "no error" not in text:
        with pytest.raises(error, match="`errors`.*" + text):
            mean_corruption_error(changed, random_errors(1))
    with pytest.raises(TypeError, match="`errors` to be a mapping, but got list"):
        mean_corruption_error([0.5] * 15, random_errors(1))


def test_a_baseline_that_does_not_suffer_is_refused():
    baseline = {**random_errors(2), "jpeg_compression": [0.1, 0.3, 0.2, 0.1, 0.3]}
    with pytest.raises(ValueError, match="no rise under jpeg_compression"):
        relative_mean_corruption_error(random_errors(1), baseline, clean_error=0.1, baseline_clean_error=0.2)
    with pytest.raises(ValueError, match=r"`clean_error` to be in \[0, 1\], but got 30"):
        relative_mean_corruption_error(random_errors(1), baseline, clean_error=30, baseline_clean_error=0.1)
